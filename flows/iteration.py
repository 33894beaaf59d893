"""One iteration of Algorithm 1 (arXiv:2405.00675)."""

import logging

from prefect import flow

from flows.benchmarks import alpaca_draws, alpaca_questions, run_benchmarks
from flows.events import announce_iteration
from flows.parameters import (
    Ahead,
    Chain,
    HardwareName,
    Iteration,
    NoGate,
    Overrides,
    RecipeName,
    RunName,
    StoreUrl,
    remember,
    started_by,
)
from flows.preparation import prepare
from flows.watch import cancel_what_works_for, watched_run
from sppo.generate import Draw, held_out_draw, training_draw
from sppo.overruling import pass_gates
from sppo.recipe import Recipe
from sppo.runs import IterationIndex, Setup, check_reached, policy_before, read_iteration, samples_before, write_iteration
from sppo.store import Artifact
from tasks.check import check_policy
from tasks.duel import duel_policies
from tasks.estimate import estimate_targets
from tasks.evaluate import evaluate_policy
from tasks.export import export_policy
from tasks.generate import generate_responses
from tasks.judge import fitted_judge
from tasks.policy import base_policy
from tasks.rank import rank_responses
from tasks.sample import sample_answers
from tasks.score import score_answers
from tasks.showing import show_iteration, tag_run
from tasks.split import split_prompts
from tasks.train import train_policy

log = logging.getLogger(__name__)


@flow(
    name="sppo-iteration",
    flow_run_name="{run} · iteration {iteration}",
    persist_result=False,
    result_serializer="json",
    on_cancellation=[cancel_what_works_for],
)
@watched_run()
def sppo_iteration(
    recipe: RecipeName,
    hardware: HardwareName,
    run: RunName,
    iteration: Iteration,
    store: StoreUrl,
    ahead: Ahead = False,
    chain: Chain = False,
    overrides: Overrides = (),
    no_gate: NoGate = False,
) -> IterationIndex:
    """Iteration t: from pi_(t-1), the sampler and the reference, to pi_t, and how often pi_t wins on held-out prompts.

    With `ahead`, the engine load that draws pi_t's held-out answers also draws its responses for iteration t + 1. Raises
    GateError at the end of an iteration that failed its gates, and before one that follows it."""
    tag_run(run)
    setup = prepare(recipe, hardware, run, store, iteration, overrides)
    remember(setup, hardware, iteration)
    check_reached(setup.store, run, iteration)
    overruled_by = started_by() if no_gate else None
    pass_gates_before(setup, iteration, overruled_by)

    making_base = base_policy.submit(setup)  # beside the judge: each takes one core in the tiny world
    judge = fitted_judge(setup, setup.recipe.judge)
    judges = [fitted_judge(setup, each) for each in setup.recipe.evaluation.judges]
    base = making_base.result()
    prompts = split_prompts(setup, base)
    drawn, held_out = training_draw(setup.recipe, prompts, iteration), held_out_draw(setup.recipe, prompts)
    questions = alpaca_questions(setup, base)
    evaluated_on = [held_out, *alpaca_draws(setup, questions)]

    policy = policy_before(setup.store, run, iteration, base)
    log.info("iteration %d of %d: from pi_%d, %s", iteration, setup.recipe.iterations, iteration - 1, policy.name)
    first, loaded = export_policy(setup, base), export_policy(setup, policy)
    responses, answers_before = generate_responses(setup, loaded, [drawn, *evaluated_on])[:2]
    ranked = rank_responses(setup, judge, drawn.prompts, responses)
    targets = estimate_targets(setup, ranked, responses)
    trained = train_policy(setup, iteration, policy, drawn.prompts, responses, targets)

    exported = export_policy(setup, trained)
    answers = sample_answers(setup, exported, [*evaluated_on, *draws_ahead(setup.recipe, prompts, iteration, ahead)])[0]
    samples = [*samples_before(setup.store, run, iteration), answers_before, answers]
    duels = duel_policies(setup, judges, held_out.prompts, answers, samples[:-1])
    evaluated = evaluate_policy(setup, iteration, samples, duels)
    scorers = {0: first, iteration - 1: loaded}
    scores = {number: score_answers(setup, scorer, held_out.prompts, answers) for number, scorer in scorers.items()}
    checked = check_policy(setup, samples, duels, scores, (responses, ranked))
    policies = {**scorers, iteration: exported}
    benchmarks = run_benchmarks(setup, iteration, policies, dict.fromkeys(policies, questions))

    stages = {"policy": policy, "judge": judge, "split": prompts, "generate": responses, "rank": ranked}
    stages |= {"estimate": targets, "train": trained, "evaluate": evaluated, "check": checked}
    stages |= {f"score.{number}": score for number, score in scores.items()} | benchmarks
    if exported is not trained:
        stages["export"] = exported
    index = write_iteration(setup, iteration, stages, samples, duels)
    show_iteration(setup.store, index)
    pass_gates(setup.store, index, overruled_by)
    announce_iteration(setup, iteration, evaluated, recipe, hardware, store, overrides, chain)
    return index


def pass_gates_before(setup: Setup, iteration: int, overruled_by: str | None) -> None:
    """Raises GateError if the iteration before this one failed its gates and nobody overrules them."""
    if iteration > 1:
        pass_gates(setup.store, read_iteration(setup.store, setup.run, iteration - 1), overruled_by)


def draws_ahead(recipe: Recipe, prompts: Artifact, iteration: int, ahead: bool) -> list[Draw]:
    """The next iteration's training draw, if it is wanted and there is a next iteration."""
    return [training_draw(recipe, prompts, iteration + 1)] if ahead and iteration < recipe.iterations else []
