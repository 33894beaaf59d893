"""Stage `alpaca-judge`: a policy's answers against the reference's under a judge, and what its logits say. N instructions.

It is a duel: rows are `Duel`s with L(model, reference) and L(reference, model). A served model is forced to choose between two
letters, and its log-probabilities are read: P(shown first) = p_m / (p_m + p_M). Which answer is shown first moves judges, so
both orders are asked and averaged; alpaca_eval asks one, drawn by a seed. A row whose judge gave no verdict, in either order
that was asked, is unjudged.
"""

import random
from collections.abc import Iterable, Sequence

import numpy as np

from sppo.alpaca_eval.annotations import Annotation
from sppo.alpaca_eval.prompts import REFERENCE_FILE, instruction_id
from sppo.alpaca_eval.sets import EvaluationSet
from sppo.errors import JudgeError
from sppo.estimate import sigmoid
from sppo.hardware import Hardware
from sppo.judges.contest import Contest, answers_in, judge_contests
from sppo.launch import HERE, Launcher
from sppo.progress import Report, silent
from sppo.rank import judged
from sppo.recipe import Judge, Recipe
from sppo.recipe.alpaca_eval import Average, Order, required
from sppo.records import Duel
from sppo.stages import stage_identity
from sppo.store import Artifact, Identity, Outcome, Store, Workspace
from sppo.store.artifact import ArtifactFile

REFERENCE_FIRST, MODEL_FIRST = "reference", "model"
ORDER_SEED = 0
"""Of alpaca_eval's annotators, unless told otherwise."""


def build(
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    judge: Artifact | None,
    prompts: ArtifactFile,
    reference: Artifact,
    answers: Sequence[Artifact],
    report: Report = silent,
    launch: Launcher = HERE,
) -> list[Artifact]:
    """Logits of each policy's answers against the reference's, one judge load a process for all that is missing.

    judge: its artifact, None for one without weights. Raises JudgeError if an instruction was not answered just once, or more
    pairs stay without a verdict than the judge's max_unjudged: run again, and only those are asked about."""
    asked = required(recipe.evaluation.alpaca_eval)
    identities = [_identity(recipe, judge, prompts, reference, each) for each in answers]
    of = {identity.fingerprint: each for identity, each in zip(identities, answers, strict=True)}

    def run(workspaces: Sequence[Workspace]) -> list[Outcome]:
        orders = 2 if asked.order == "both" else 1
        contests = [
            Contest(workspace, found, reference, _pairs(prompts, reference, found, orders), asked.order)
            for workspace in workspaces
            for found in [of[workspace.fingerprint]]
        ]
        counted = judge_contests(asked.judge, judge, prompts, hardware, contests, launch)
        return [
            Outcome(f"{judge_name(asked.judge)}, {counts['prompts']} instructions, {judged(counts)}", counts)
            for counts in counted
        ]

    return store.build_together(identities, run, report)


def judge_name(judge: Judge) -> str:
    """What annotations and results call a judge."""
    return judge.model if judge.kind == "endpoint" else judge.kind


def model_first(instruction: str) -> bool:
    """Whether alpaca_eval shows the model's answer before the reference's: drawn by the instruction's text."""
    return random.Random(f"is_switched_outputs{instruction}{ORDER_SEED}").choices([False, True])[0]


def with_verdicts(rows: Iterable[Annotation], duels: Iterable[Duel], order: Order, average: Average) -> list[Annotation]:
    """Rows with what the judge's logits say of them; one that lacks a logit stays unjudged."""
    by_id = {duel.prompt_id: duel for duel in duels}
    return [_with_verdict(row, by_id[instruction_id(row.instruction)], order, average) for row in rows]


def open_rows(questions: EvaluationSet, answers: dict[str, str], generator: str, annotator: str) -> list[Annotation]:
    """Rows without a verdict in the set's order, of the instructions that were answered. answers: by prompt id."""
    return [
        Annotation(
            instruction=question.instruction,
            output_1=question.reference,
            generator_1=questions.generator,
            output_2=answers[instruction_id(question.instruction)],
            generator_2=generator,
            annotator=annotator,
            preference=None,
            more={"dataset": question.dataset},
        )
        for question in questions.questions
        if instruction_id(question.instruction) in answers
    ]


def _with_verdict(row: Annotation, duel: Duel, order: Order, average: Average) -> Annotation:
    toward = {REFERENCE_FIRST: [-logit for logit in duel.backward], MODEL_FIRST: list(duel.forward)}  # the model
    logits = np.array([logit for found in toward.values() for logit in found])  # (1,) or (2,)
    if np.isnan(logits).any():
        return row
    chances = sigmoid(logits) if average == "probabilities" else sigmoid(logits.mean(keepdims=True))
    shown = {first: found[0] for first, found in toward.items() if found}
    return row.with_verdict(1 + float(chances.mean()), {"order": order, "logits_for_model_by_shown_first": shown})


def _identity(
    recipe: Recipe, judge: Artifact | None, prompts: ArtifactFile, reference: Artifact, answers: Artifact
) -> Identity:
    inputs: dict[str, Artifact | ArtifactFile | str] = {
        "prompts": prompts,
        "answers": answers,
        "reference": reference.file(REFERENCE_FILE),
    }
    if judge is not None:
        inputs["judge"] = judge
    return stage_identity("alpaca-judge", recipe, inputs)


def _pairs(prompts: ArtifactFile, reference: Artifact, answers: Artifact, orders: int) -> dict[str, int]:
    """Pairs in each chunk file of the answers."""
    wanted = set(prompts.table()["prompt_id"].to_pylist())
    referred = set(reference.table(REFERENCE_FILE)["prompt_id"].to_pylist())
    pairs: dict[str, int] = {}
    seen: set[str] = set()
    for name in answers.file_names(".parquet"):
        chunk = answers_in(answers, name)
        for prompt_id, texts in chunk.items():
            if prompt_id not in wanted & referred or prompt_id in seen or len(texts) != 1:
                raise JudgeError(
                    f"{answers.name}, {name}: instruction {prompt_id} has {len(texts)} answers"
                    f"{' and stands in an earlier chunk too' if prompt_id in seen else ''}"
                    f"{'' if prompt_id in wanted & referred else ' and is not in the evaluation set'}; "
                    "expected each instruction of the set once: draw the answers again"
                )
        seen |= chunk.keys()
        pairs[name] = orders * len(chunk)
    if wanted - seen:
        raise JudgeError(
            f"{len(wanted - seen)} of {len(wanted)} instructions have no answer in {answers.name}, the first "
            f"{min(wanted - seen)}; expected one each: draw the answers again"
        )
    return pairs
