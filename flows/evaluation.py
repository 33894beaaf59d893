"""Held-out evaluation of what a run has trained so far, as it was asked for then or with other judges, prompts and sampling."""

import json
from typing import Any

from prefect import flow

from flows.parameters import HardwareName, IterationOrAll, Overrides, RunName, StoreUrl
from flows.preparation import prepare_evaluation
from flows.watch import cancel_what_works_for, watched_run
from sppo.generate import held_out_draw
from sppo.runs import read_iteration
from tasks.duel import duel_policies
from tasks.evaluate import evaluate_policy
from tasks.judge import fitted_judge
from tasks.policy import base_policy
from tasks.sample import sample_answers
from tasks.showing import tag_run
from tasks.split import split_prompts


@flow(name="sppo-evaluation", flow_run_name="{run} · evaluation", persist_result=False, on_cancellation=[cancel_what_works_for])
@watched_run()
def sppo_evaluation(
    run: RunName, hardware: HardwareName, store: StoreUrl, iteration: IterationOrAll = None, overrides: Overrides = ()
) -> list[dict[str, Any]]:
    """The report of one finished iteration, or of each. The run's index stays as it is.

    `overrides` may change anything under `evaluation`, such as `evaluation.max_prompts=500`."""
    tag_run(run)
    setup, wanted = prepare_evaluation(run, hardware, store, iteration, overrides)
    base = base_policy(setup)
    judges = [fitted_judge(setup, judge) for judge in setup.recipe.evaluation.judges]
    held_out = held_out_draw(setup.recipe, split_prompts(setup, base))

    trained = [read_iteration(setup.store, run, number).opened(setup.store, "train") for number in range(1, wanted[-1] + 1)]
    samples = [sample_answers(setup, policy, [held_out])[0] for policy in [base, *trained]]
    evaluated = []
    for number in wanted:
        duels = duel_policies(setup, judges, held_out.prompts, samples[number], samples[:number])
        evaluated.append(evaluate_policy(setup, number, samples[: number + 1], duels))
    return [json.loads(artifact.text("report.json")) for artifact in evaluated]
