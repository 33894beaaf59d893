"""Algorithm 1, all iterations (arXiv:2405.00675)."""

from collections.abc import Sequence

from prefect import flow

from flows.iteration import sppo_iteration
from flows.preparation import prepare
from sppo.report import RunReport
from tasks.report import report_run


@flow(name="sppo-run", flow_run_name="{run}", persist_result=False)
def sppo_run(
    recipe: str, hardware: str, run: str, store: str, iterations: int | None = None, overrides: Sequence[str] = ()
) -> RunReport:
    """Iterations 1 to `iterations` (the recipe's, if none are named), then the table of all of them."""
    setup = prepare(recipe, hardware, run, store, iterations, overrides)
    last = iterations or setup.recipe.iterations
    for iteration in range(1, last + 1):
        sppo_iteration(recipe, hardware, run, iteration, store, iteration < last, overrides)
    return report_run(setup)
