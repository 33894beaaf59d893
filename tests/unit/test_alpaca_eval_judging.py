"""What a judge's logits say of a policy's answers, what is asked, and what is refused. Worker processes: tests/workers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sppo.alpaca_eval import judging, results, scores
from sppo.alpaca_eval.annotations import RAW, Annotation, from_json, preferences
from sppo.alpaca_eval.judging import model_first, open_rows, with_verdicts
from sppo.alpaca_eval.prompts import PROMPTS_FILE, instruction_id
from sppo.alpaca_eval.report import compare
from sppo.alpaca_eval.sets import EvaluationSet, Question
from sppo.errors import EvaluationError, JudgeError, RecipeError
from sppo.hardware import Hardware
from sppo.judges.contest import Chunks, RankRun
from sppo.launch import Place
from sppo.recipe import Endpoint, EndpointJudge, Recipe, WorldRuleJudge
from sppo.recipe.alpaca_eval import Average, Order
from sppo.records import Duel, from_table, to_table
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.workers.rank import work
from sppo.world.language import rule_logit

MakeAlpaca = Callable[..., tuple[Recipe, Artifact, Artifact, Artifact]]
RULE = WorldRuleJudge(kind="world-rule")
QUESTIONS = EvaluationSet(
    tuple(Question(f"Question {number}?", f"reference {number}", "vicuna") for number in range(6)), "gpt4_1106_preview", ""
)
ANSWERS = {instruction_id(question.instruction): f"model {number}" for number, question in enumerate(QUESTIONS.questions)}


def rows() -> list[Annotation]:
    return open_rows(QUESTIONS, ANSWERS, "ours", "j")


def duels(forward: list[float], backward: list[float]) -> list[Duel]:
    """The same logits of every row: L(model, reference), L(reference, model)."""
    return [Duel(prompt_id, 1, 1, forward, backward) for prompt_id in ANSWERS]


def chances(found: list[Annotation]) -> list[float]:
    return [float(value) for value in preferences(found)]


# --- rows


def test_rows_are_the_sets_in_its_order_with_the_reference_first_whatever_order_answers_have() -> None:
    found = open_rows(QUESTIONS, dict(reversed(ANSWERS.items())), "ours", "j")
    assert [one.instruction for one in found] == QUESTIONS.instructions
    assert found[2] == Annotation(
        "Question 2?", "reference 2", "gpt4_1106_preview", "model 2", "ours", "j", None, {"dataset": "vicuna"}
    )
    answered = {prompt_id: ANSWERS[prompt_id] for prompt_id in list(ANSWERS)[:2]}
    assert [one.instruction for one in open_rows(QUESTIONS, answered, "ours", "j")] == ["Question 0?", "Question 1?"]


# --- verdicts. The judge likes what is shown first, and the model's answers more: first 0.9, second 1 - 0.3 = 0.7.
SHOWN_FIRST, SHOWN_SECOND = math.log(0.9 / 0.1), -math.log(0.3 / 0.7)


@pytest.mark.parametrize(
    ("average", "expected"),
    # (0.9 + 0.7) / 2; and odds sqrt(9 * 7/3) = sqrt(21)
    [("probabilities", 0.8), ("logits", math.sqrt(21) / (1 + math.sqrt(21)))],
)
def test_both_orders_are_averaged(average: Average, expected: float) -> None:
    found = with_verdicts(rows(), duels([SHOWN_FIRST], [-SHOWN_SECOND]), "both", average)
    assert chances(found) == pytest.approx([expected] * 6, abs=1e-6)
    assert found[0].more[RAW] == {
        "order": "both",
        "logits_for_model_by_shown_first": {
            "reference": pytest.approx(math.log(7 / 3)),
            "model": pytest.approx(math.log(9)),
        },
    }


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_of_a_single_order_its_chance_is_taken(average: Average) -> None:
    assert chances(with_verdicts(rows(), duels([SHOWN_FIRST], []), "alpaca_eval", average)) == pytest.approx([0.9] * 6)
    found = with_verdicts(rows(), duels([], [-SHOWN_SECOND]), "alpaca_eval", average)
    assert chances(found) == pytest.approx([0.7] * 6)
    assert list(found[0].more[RAW]["logits_for_model_by_shown_first"]) == ["reference"]


def test_a_row_that_lacks_either_order_is_unjudged_and_equal_answers_are_a_draw() -> None:
    said = duels([SHOWN_FIRST], [-SHOWN_SECOND])
    said[1] = Duel(said[1].prompt_id, 1, 1, [math.nan], [0.0])
    said[4] = Duel(said[4].prompt_id, 1, 1, [1.0], [math.nan])
    said[5] = Duel(said[5].prompt_id, 1, 1, [0.0], [0.0])
    found = with_verdicts(rows(), reversed(said), "both", "probabilities")
    assert [one.preference is None for one in found] == [False, True, False, False, True, False]
    assert found[5].preference == 1.5


# --- what is asked

FOXES = {f"Describe fox {number}.": (f"Fox {number} is red.", f"The red fox {number} runs.") for number in range(8)}


def asked_by_worker(
    store: Store, folder: Path, order: Order, reference: Artifact, prompts: Artifact, answers: Artifact
) -> tuple[list[Duel], dict[str, int]]:
    fingerprint = "1" * 64
    chunks = Chunks(
        stage="alpaca-judge",
        fingerprint=fingerprint,
        responses=answers.reference,
        against=reference.reference,
        names=("chunk-00000.parquet",),
        order=order,
    )
    run = RankRun(
        judge=RULE,
        judge_artifact=None,
        prompts=prompts.file(PROMPTS_FILE).reference,
        device="cpu",
        tokens_per_batch=1,
        contests=(chunks,),
        pairs=16,
    )
    work(Place(store=store.url, scratch=store.scratch, folder=folder, index=0), run)
    with store.workspace("alpaca-judge", fingerprint) as workspace:
        record = workspace.part("chunk-00000")
        assert record is not None
        return list(from_table(Duel, pq.read_table(workspace.part_path(record.files[0])))), record.counts


def test_alpaca_evals_order_asks_one_question_a_row_the_one_that_the_instruction_draws(
    store: Store, make_alpaca: MakeAlpaca, tmp_path: Path
) -> None:
    _, *artifacts = make_alpaca(FOXES, RULE)
    found, counts = asked_by_worker(store, tmp_path, "alpaca_eval", *artifacts)
    first = [model_first(instruction) for instruction in FOXES]
    assert set(first) == {True, False}
    assert counts == {"prompts": 8, "pairs": 8, "judged": 8, "identical": 0, "repeated": 0}
    for duel, (instruction, (reference, answer)), shown_first in zip(found, FOXES.items(), first, strict=True):
        logit = pytest.approx(rule_logit(instruction, answer, reference), abs=1e-6)
        assert (duel.forward, [-value for value in duel.backward]) == (([logit], []) if shown_first else ([], [logit]))


def test_both_orders_are_two_questions_a_row(store: Store, make_alpaca: MakeAlpaca, tmp_path: Path) -> None:
    _, *artifacts = make_alpaca(FOXES, RULE)
    found, counts = asked_by_worker(store, tmp_path, "both", *artifacts)
    assert counts["pairs"] == 16
    assert [(len(duel.forward), len(duel.backward)) for duel in found] == [(1, 1)] * 8


# --- what is refused, before a judge is loaded


def test_an_instruction_without_an_answer_or_outside_the_set_is_named(
    store: Store, cpu: Hardware, make_alpaca: MakeAlpaca
) -> None:
    recipe, reference, prompts, answers = make_alpaca({**FOXES, "Why?": ("Because.", "")}, RULE)
    missing = instruction_id("Why?")
    with pytest.raises(JudgeError, match=rf"1 of 9 instructions have no answer in alpaca-answer/.*, the first {missing}"):
        judging.build(store, recipe, cpu, None, prompts.file(PROMPTS_FILE), reference, [answers])
    _, _, fewer, _ = make_alpaca(dict(list(FOXES.items())[:7]), RULE)
    with pytest.raises(
        JudgeError, match=r"chunk-00000\.parquet: instruction \w+ has 1 answers and is not in the evaluation set"
    ):
        judging.build(store, recipe, cpu, None, fewer.file(PROMPTS_FILE), reference, [answers])


def test_a_recipe_without_alpaca_eval_is_told_what_to_add(
    store: Store, tiny: Recipe, cpu: Hardware, make_alpaca: MakeAlpaca
) -> None:
    _, reference, prompts, answers = make_alpaca(FOXES, RULE)
    with pytest.raises(RecipeError, match=r"no evaluation\.alpaca_eval; expected a judge and a decoding"):
        judging.build(store, tiny, cpu, None, prompts.file(PROMPTS_FILE), reference, [answers])


# --- numbers

ROWS = {f"Describe fox {number}.": ("r" * (10 + number), "m" * (12 + 3 * (number % 5))) for number in range(30)}
SERVED = EndpointJudge(kind="endpoint", source=Endpoint(url="http://127.0.0.1:1/v1"), model="judge-7b")


def judged_as(store: Store, logits: dict[str, tuple[list[float], list[float]]]) -> Artifact:
    """Verdicts as if a judge had given them: forward and backward logits by instruction."""

    def run(workspace: Workspace) -> Outcome:
        said = [Duel(instruction_id(text), 1, 1, *found) for text, found in logits.items()]
        workspace.add_table(to_table(Duel, reversed(said)), "chunk-00000.parquet")
        return Outcome("verdicts")

    return store.build(Step(Identity("alpaca-judge", 1, {"logits": json.dumps(logits)}, {}), run))


def logits_of(shift: float) -> dict[str, tuple[list[float], list[float]]]:
    """Of the number'th row 0.2 number - 3 + shift toward the model, in both orders; the 7th has none."""
    toward = {text: 0.2 * number - 3 + shift for number, text in enumerate(ROWS)}
    found = {text: ([logit], [-logit]) for text, logit in toward.items()}
    found["Describe fox 7."] = ([math.nan], [math.nan])
    return found


def test_numbers_are_of_judged_rows_and_annotations_are_in_alpaca_evals_schema(store: Store, make_alpaca: MakeAlpaca) -> None:
    recipe, reference, _, answers = make_alpaca(ROWS, SERVED)
    made = store.build(results.step(recipe, reference, answers, judged_as(store, logits_of(0.0))))
    rows = from_json(made.text(results.ANNOTATIONS_FILE))
    assert [row.instruction for row in rows] == list(ROWS)
    assert (rows[3].output_1, rows[3].generator_1, rows[3].annotator) == ("r" * 13, "the-reference", "judge-7b")
    assert rows[3].generator_2 == "policy-aaaaaaaaaaaa"
    assert rows[3].preference == pytest.approx(1 + 1 / (1 + math.exp(2.4)))
    assert rows[7].preference is None
    # the model's are better from the 16th row on; the 15th, logit 0, is a draw
    assert dict(made.manifest.counts) == {"rows": 30, "unjudged": 1, "wins": 14, "draws": 1}
    expected = [100 / (1 + math.exp(3 - 0.2 * number)) for number in range(30) if number != 7]
    metrics = made.manifest.metrics
    assert metrics["win_rate"] == pytest.approx(sum(expected) / 29)
    assert metrics["discrete_win_rate"] == pytest.approx(100 * 14.5 / 29)
    assert metrics["win_rate_low"] < metrics["win_rate"] < metrics["win_rate_high"]
    assert metrics["length"] == pytest.approx(18.0)  # 12 to 24 characters


def test_scores_have_intervals_and_n_and_notes_say_how_they_came_about(store: Store, make_alpaca: MakeAlpaca) -> None:
    recipe, reference, _, answers = make_alpaca(ROWS, SERVED)
    made = store.build(results.step(recipe, reference, answers, judged_as(store, logits_of(0.0))))
    found = scores.scores(made, 2)
    assert [(score.name, score.n, score.unit) for score in found.scores] == [
        ("win rate", 29, "%"),
        ("length-only win rate", 29, "%"),
        ("discrete win rate", 29, "%"),
        ("mean length", 30, "characters"),
    ]
    assert {(score.policy, score.group) for score in found.scores} == {(2, "against the-reference, judge judge-7b")}
    assert all(score.low is not None and score.high is not None and score.low < score.high for score in found.scores)
    assert found.notes["against the-reference, judge judge-7b"] == {
        "judge": "judge-7b",
        "order": "both orders asked, their probabilities averaged",
        "decoding": "temperature 0.7, top-p 0.9, at most 8 tokens, the tokenizer's chat template",
        "instructions": "all 30 of 30, 1 of them without a verdict and left out",
        "reference": "the-reference",
        "fit": "length_controlled_minimal; intervals from 200 refits",
    }


def test_two_policies_are_compared_from_their_artifacts_alone(store: Store, make_alpaca: MakeAlpaca) -> None:
    recipe, reference, _, answers = make_alpaca(ROWS, SERVED)
    one, other = (
        store.build(results.step(recipe, reference, answers, judged_as(store, logits_of(shift)))) for shift in (1.0, 0.0)
    )
    found = compare(scores.measured(one), scores.measured(other))
    gain = one.manifest.metrics["win_rate"] - other.manifest.metrics["win_rate"]
    assert found.win_rate.interval.value == pytest.approx(gain)
    assert found.win_rate.interval.low > 0
    controlled = [each.manifest.metrics["length_controlled_win_rate"] for each in (one, other)]
    assert found.length_controlled_win_rate.interval.value == pytest.approx(controlled[0] - controlled[1])


def test_verdicts_on_other_answers_are_refused(store: Store, make_alpaca: MakeAlpaca) -> None:
    recipe, reference, _, answers = make_alpaca(ROWS, SERVED)
    some = dict(list(logits_of(0.0).items())[:20])
    with pytest.raises(EvaluationError, match=r"has 30 answers and alpaca-judge/\w+ judged 20, not all the same"):
        store.build(results.step(recipe, reference, answers, judged_as(store, some)))


def test_where_files_and_judges_lie_is_in_no_fingerprint_and_what_they_are_is(store: Store, make_alpaca: MakeAlpaca) -> None:
    recipe, reference, _, answers = make_alpaca(ROWS, SERVED)
    judged = judged_as(store, logits_of(0.0))

    def fingerprint(**changes: object) -> str:
        asked = recipe.evaluation.alpaca_eval
        assert asked is not None
        evaluation = recipe.evaluation.model_copy(update={"alpaca_eval": asked.model_copy(update=changes)})
        changed = recipe.model_copy(update={"evaluation": evaluation})
        return results.step(changed, reference, answers, judged).identity.fingerprint

    elsewhere = SERVED.model_copy(update={"source": Endpoint(url="https://elsewhere.example/v1")})
    assert fingerprint() == fingerprint(judge=elsewhere)
    assert len({fingerprint(), fingerprint(average="logits"), fingerprint(judge=RULE), fingerprint(order="alpaca_eval")}) == 4
