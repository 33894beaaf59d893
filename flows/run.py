"""Algorithm 1, all iterations (arXiv:2405.00675)."""

from prefect import flow

from flows.iteration import sppo_iteration
from flows.parameters import (
    DatedRunName,
    HardwareName,
    LastIteration,
    NoGate,
    Overrides,
    RecipeName,
    Start,
    StoreUrl,
    dated,
    dated_run_name,
    remember,
)
from flows.preparation import THE_RUNS_OWN, prepare
from flows.watch import cancel_what_works_for, watched_run
from sppo.report import RunReport
from sppo.runs import shared_iterations
from tasks.report import report_run
from tasks.showing import tag_run


@flow(
    name="sppo-run",
    flow_run_name=dated_run_name,
    persist_result=False,
    result_serializer="json",
    on_cancellation=[cancel_what_works_for],
)
@watched_run()
def sppo_run(
    recipe: RecipeName,
    hardware: HardwareName,
    run: DatedRunName,
    store: StoreUrl,
    iterations: LastIteration = None,
    start: Start = "base",
    overrides: Overrides = (),
    no_gate: NoGate = False,
) -> RunReport:
    """Iterations 1 to `iterations` (the recipe's, if none are named), then the table of all of them.

    Those that a run shares with the one it branched from are done. Raises GateError after one that failed its gates."""
    run = dated(run)
    tag_run(run)
    setup = prepare(recipe, hardware, run, store, iterations, overrides, start)
    remember(setup, hardware, iterations)
    last = iterations or setup.recipe.iterations
    for iteration in range(shared_iterations(setup.store, run) + 1, last + 1):
        sppo_iteration(THE_RUNS_OWN, hardware, run, iteration, store, iteration < last, no_gate=no_gate)
    return report_run(setup)
