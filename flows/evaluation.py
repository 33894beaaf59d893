"""Held-out evaluation of policies: of what a run has trained so far, or of any models, without a run around them."""

import json
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.benchmarks import Questions, alpaca_draws, alpaca_questions, run_benchmarks
from flows.parameters import (
    EvaluatedRun,
    HardwareName,
    IterationOrAll,
    Models,
    Overrides,
    RecipeOfModels,
    StoreUrl,
    evaluation_name,
)
from flows.preparation import Comparison, prepare_evaluation
from flows.watch import cancel_what_works_for, watched_run
from sppo.card import FILE as SCORES
from sppo.card.scores import parse_scores
from sppo.generate import Draw, held_out_draw
from sppo.runs import Setup, read_iteration
from sppo.store import Artifact
from tasks.benchmark import gather_benchmarks
from tasks.check import check_policy
from tasks.duel import duel_policies
from tasks.evaluate import evaluate_policy
from tasks.export import export_policy
from tasks.harness import run_harness
from tasks.judge import fitted_judge
from tasks.policy import base_policy
from tasks.sample import sample_answers
from tasks.score import score_answers
from tasks.showing import tag_run
from tasks.split import split_prompts


@flow(
    name="sppo-evaluation",
    flow_run_name=evaluation_name,
    persist_result=False,
    result_serializer="json",
    on_cancellation=[cancel_what_works_for],
)
@watched_run()
def sppo_evaluation(
    hardware: HardwareName,
    store: StoreUrl,
    run: EvaluatedRun = None,
    iteration: IterationOrAll = None,
    recipe: RecipeOfModels = None,
    models: Models = (),
    overrides: Overrides = (),
) -> list[dict[str, Any]]:
    """The reports of a run's finished iterations, as they were asked for then or with other values under `evaluation`; or of
    models, each against the recipe's own policy and the models before it. No run's index changes.

    `overrides` may change anything under `evaluation`, such as `evaluation.max_prompts=500`; for models, anything."""
    compared = prepare_evaluation(hardware, store, run, iteration, recipe, models, overrides)
    setup = compared.setups[0]
    tag_run(setup.run)
    if not compared.wanted:
        return [served_report(setup)]
    judges = [fitted_judge(setup, judge) for judge in setup.recipe.evaluation.judges]
    policies = policies_of(compared)
    # the policies of a run read prompts as its base policy does
    readers = [policies[0]] * len(policies) if compared.run else policies
    told = zip(compared.names, compared.setups, policies, readers, strict=True)
    subjects = [subject(*each) for each in told]
    return [report_of(setup, judges, subjects[: number + 1], trained_on(compared, number)) for number in compared.wanted]


@dataclass(frozen=True)
class Subject:
    """A policy that is evaluated, and its answers."""

    name: str
    policy: Artifact
    """As engines load it."""
    held_out: Draw
    questions: Questions | None
    answers: Artifact
    """To the held-out prompts."""


def subject(name: str, setup: Setup, policy: Artifact, reader: Artifact) -> Subject:
    """Let a policy answer what it is evaluated on, rendered for `reader`."""
    held_out, questions = held_out_draw(setup.recipe, split_prompts(setup, reader)), alpaca_questions(setup, reader)
    loaded = export_policy(setup, policy)
    answers = sample_answers(setup, loaded, [held_out, *alpaca_draws(setup, questions)])[0]
    return Subject(name, loaded, held_out, questions, answers)


def report_of(
    setup: Setup, judges: list[Artifact | None], subjects: list[Subject], trained: tuple[Artifact, Artifact] | None
) -> dict[str, Any]:
    """The report of the last of some policies, against all before it."""
    number, newest = len(subjects) - 1, subjects[-1]
    samples, prompts = [each.answers for each in subjects], newest.held_out.prompts
    duels = duel_policies(setup, judges, prompts, newest.answers, samples[:-1])
    evaluated = evaluate_policy(setup, number, samples, duels)
    others = {other: subjects[other] for other in (0, number - 1)}
    # log-probs of another tokenizer's ids would say nothing
    alike = {other: each.policy for other, each in others.items() if each.held_out.prompts.digest == prompts.digest}
    scores = {other: score_answers(setup, policy, prompts, newest.answers) for other, policy in alike.items()}
    checked = check_policy(setup, samples, duels, scores, trained)
    measured = {**others, number: newest}
    policies, questions = (
        {other: each.policy for other, each in measured.items()},
        {other: each.questions for other, each in measured.items()},
    )
    benchmark = run_benchmarks(setup, number, policies, questions).get("benchmark")
    artifacts = [made.reference for made in (evaluated, checked, benchmark) if made is not None]
    own = [] if benchmark is None else own_scores(benchmark, number)
    return {**json.loads(evaluated.text("report.json")), "name": newest.name, "scores": own, "artifacts": artifacts}


def policies_of(compared: Comparison) -> list[Artifact]:
    """pi_0 and what a run has trained, or the models, each as it was made or fetched."""
    if compared.run is None:
        return [base_policy(each) for each in compared.setups]
    setup = compared.setups[0]
    numbers = range(1, len(compared.setups))
    trained = [read_iteration(setup.store, compared.run, number).opened(setup.store, "train") for number in numbers]
    return [base_policy(setup), *trained]


def trained_on(compared: Comparison, number: int) -> tuple[Artifact, Artifact] | None:
    """The responses that a run's iteration has trained on, and the judge's logits of them; None for a model from elsewhere."""
    if compared.run is None:
        return None
    store = compared.setups[0].store
    index = read_iteration(store, compared.run, number)
    return index.opened(store, "generate"), index.opened(store, "rank")


def served_report(setup: Setup) -> dict[str, Any]:
    """The report of models behind servers, which only lm-evaluation-harness asks."""
    benchmark = gather_benchmarks(setup, 0, {}, {0: run_harness(setup, None)})
    scores = own_scores(benchmark, 0)
    return {"name": "served", "iteration": 0, "judges": [], "scores": scores, "artifacts": [benchmark.reference]}


def own_scores(benchmark: Artifact, policy: int) -> list[dict[str, Any]]:
    """A policy's scores as plain JSON."""
    found = parse_scores(benchmark.text(SCORES), benchmark.name).scores
    return [score.model_dump(mode="json", exclude_none=True) for score in found if score.policy == policy]
