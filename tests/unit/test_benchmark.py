"""Benchmarks of several policies as one artifact: every number with interval and n, what changed, and how surely."""

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sppo.benchmark
from sppo.alpaca_eval.annotations import Annotation, to_json
from sppo.alpaca_eval.report import as_json, measure
from sppo.alpaca_eval.results import ANNOTATIONS_FILE, REPLICATES_FILE, RESULT_FILE
from sppo.alpaca_eval.sets import EvaluationSet, Question
from sppo.benchmark import check_benchmarks
from sppo.card import COMPARISONS_FILE, FILE, Card, Comparison, Metadata, Scores, parse_comparisons
from sppo.card.contents import Made
from sppo.card.front_matter import front_matter
from sppo.card.rendering import benchmark_tables, comparison_table
from sppo.card.scores import parse_scores
from sppo.errors import EvaluationError, RecipeError
from sppo.harness.scores import ROWS, Score, part_name, to_table
from sppo.portuguese.tables import table_key, write
from sppo.portuguese.tasks import TASKS
from sppo.recipe import Endpoint, Harness, Recipe, Served
from sppo.report import RunReport
from sppo.statistics import Interval
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

OAB = TASKS["sppo_pt_oab"]
RTE = TASKS["sppo_pt_assin2_rte"]
Answered = Mapping[str, Sequence[tuple[str, str]]]
"""Target and answer of each row, by task."""
SHA256 = "5" * 64


def row(task: str, number: int, filter_name: str, target: str, answer: str, scores: Mapping[str, object]) -> dict[str, Any]:
    said = {"prompt": "", "continuations": [], "replies": [answer], "answers": [answer], "target": target}
    document = json.dumps({"question": f"{task} {number}"})
    return {**said, "task": task, "row": number, "filter": filter_name, "document": document, "scores": json.dumps(scores)}


def share(right: Sequence[bool]) -> Interval:
    """Only its value and n are looked at where policies are compared."""
    return Interval(sum(right) / len(right) if right else math.nan, 0.0, 1.0, len(right))


def part(name: str, answered: Answered, averaged: bool) -> tuple[list[dict[str, Any]], list[Score]]:
    """Rows and scores under a name of the recipe: one of the nine, a task of upstream's, or a group over its tasks.

    averaged: whether a group has a mean of its own."""
    rows: list[dict[str, Any]] = []
    scores: list[Score] = []
    filter_name, metric = ("answer", TASKS[name].metric) if name in TASKS else ("none", "acc")
    for task, pairs in answered.items():
        right = [target == answer for target, answer in pairs]
        for number, (target, answer) in enumerate(pairs):
            told: object = [target, answer] if name in TASKS else float(right[number])
            rows.append(row(task, number, filter_name, target, answer, {metric: told}))
        within = None if task == name or not averaged else name
        scores.append(Score(task, metric, filter_name, share(right), True, 3, "1", within))
    if name not in answered and averaged:
        every = [target == answer for pairs in answered.values() for target, answer in pairs]
        scores.append(Score(name, "acc", "none", share(every), True, None, "2"))
    return rows, scores


def measured(store: Store, policy: str, parts: Mapping[str, Answered], averaged: bool = True, **changes: object) -> Artifact:
    """A harness artifact of these answers, as its stage writes it."""
    entry = {"tasks": list(parts), "chat": True, "max_length": 4096, "portuguese_length": 2560, "max_rows": None}
    recipe: dict[str, Any] = {"evaluation.harness": [entry], "generation.engine": "vllm", "policy.dtype": "bfloat16"}
    recipe |= changes
    tables = {table_key(TASKS[name].table, TASKS[name].test_split): SHA256 for name in parts if name in TASKS}

    def run(workspace: Workspace) -> Outcome:
        scores: list[Score] = []
        for name, answered in parts.items():
            rows, found = part(name, answered, averaged)
            workspace.add_table(pa.Table.from_pylist(rows, schema=ROWS), f"{part_name(name)}.rows.parquet")
            workspace.add_table(to_table(found), f"{part_name(name)}.scores.parquet")
            scores += found
        workspace.add_table(to_table(scores), "scores.parquet")
        settings = {"recipe": recipe, "tables": tables, "versions": {"lm-eval": "0.4.13"}}
        workspace.add_text(json.dumps(settings), "harness.json")
        return Outcome("", {"dropped_shots": 2, "cut_prompts": 0})

    return store.build(Step(Identity("harness", 1, {"policy": policy, "recipe": recipe}, {}), run))


def answers(right: str) -> list[tuple[str, str]]:
    """Of questions whose answer is A: `+` was answered so, `-` with B."""
    return [("A", "A" if mark == "+" else "B") for mark in right]


def benchmark(store: Store, recipe: Recipe, iteration: int, *policies: Artifact) -> Artifact:
    """Of pi_0, pi_1, .. in their order."""
    harness = {number: [artifact] for number, artifact in enumerate(policies)}
    return store.build(sppo.benchmark.step(recipe, iteration, {}, harness))


def comparisons(artifact: Artifact) -> dict[tuple[int, str], Comparison]:
    """By the earlier policy and the name."""
    found = parse_comparisons(artifact.text(COMPARISONS_FILE), "")
    return {(each.against, each.name): each for each in found.comparisons}


def test_right_answers_are_compared_by_mcnemar_as_one_family(store: Store, tiny: Recipe) -> None:
    # OAB: six gained, none lost; of six fair coins none is tails in 1 of 64 cases, both tails 2/64 = 0.03125
    # GSM8K: five gained, one lost; (1 + 6) / 64 of the cases, both tails 14/64 = 0.21875
    base = measured(store, "0", {OAB.name: {OAB.name: answers("++++------")}, "gsm8k": {"gsm8k": answers("+++-----")}})
    first = measured(store, "1", {OAB.name: {OAB.name: answers("++++++++++")}, "gsm8k": {"gsm8k": answers("++-+++++")}})
    found = comparisons(benchmark(store, tiny, 1, base, first))
    assert found.keys() == {(0, "OAB Exams"), (0, "gsm8k, acc")}
    oab, gsm8k = found[0, "OAB Exams"], found[0, "gsm8k, acc"]
    assert (oab.difference, oab.unit, oab.n, oab.only_policy, oab.only_against) == (pytest.approx(60), "points", 10, 6, 0)
    assert (oab.test, oab.p, oab.adjusted_p) == ("McNemar's exact test", 0.03125, 0.0625)  # twice: the smaller of two
    assert 0 < oab.low < 60 < oab.high <= 100
    assert (gsm8k.difference, gsm8k.unit, gsm8k.n, gsm8k.only_policy, gsm8k.only_against) == (0.5, "", 8, 5, 1)
    assert (gsm8k.p, gsm8k.adjusted_p) == (0.21875, 0.21875)


def test_an_iteration_is_compared_with_the_base_policy_and_the_one_before(store: Store, tiny: Recipe) -> None:
    marks = ("----------", "++++------", "++++++++++", "++++++++++")
    measurements = [measured(store, str(n), {OAB.name: {OAB.name: answers(mark)}}) for n, mark in enumerate(marks)]
    artifact = benchmark(store, tiny, 3, *measurements)
    found = comparisons(artifact)
    # ten gained of ten: 2/1024, of two the smaller; none of none: 1
    assert {place: each.adjusted_p for place, each in found.items()} == {(0, "OAB Exams"): 4 / 1024, (2, "OAB Exams"): 1.0}
    assert artifact.manifest.counts == {"scores": 1, "comparisons": 2, "beyond_chance": 1}
    assert {score.policy: score.value for score in scores(artifact).scores} == {0: 0, 1: 40, 2: 100, 3: 100}


def scores(artifact: Artifact) -> Scores:
    return parse_scores(artifact.text(FILE), "")


def test_f1_is_compared_by_resampling_rows_for_both_policies(store: Store, tiny: Recipe) -> None:
    # targets Sim, Sim, Não, Não; all Sim: F1 of Sim 2 x 2 / (2 + 4), of Não 0, so 1/3; all right: 1
    targets = ["Sim", "Sim", "Não", "Não"] * 5
    base = measured(store, "0", {RTE.name: {RTE.name: [(target, "Sim") for target in targets]}})
    first = measured(store, "1", {RTE.name: {RTE.name: [(target, target) for target in targets]}})
    [found] = comparisons(benchmark(store, tiny, 1, base, first)).values()
    assert (found.test, found.only_policy, found.n) == ("paired bootstrap", None, 20)
    assert found.difference == pytest.approx(100 * 2 / 3)
    assert found.low < found.difference < found.high
    assert found.adjusted_p == found.p < 0.01
    [same] = comparisons(benchmark(store, tiny, 1, base, base)).values()
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def nine(store: Store, policy: str, oab: str) -> Artifact:
    told: dict[str, Answered] = {}
    for task in TASKS.values():
        targets = [*(task.answers[:2] or ("1,0", "4,0")), "3,0" if task.reading == "number" else task.answers[0]] * 4
        told[task.name] = {task.name: [(target, target) for target in targets]}
    told[OAB.name] = {OAB.name: answers(oab)}
    return measured(store, policy, told)


def card_of(artifact: Artifact, recipe: Recipe, iteration: int) -> Card:
    """A card that has nothing but its benchmarks."""
    made = Made("train/" + "a" * 64, "b" * 64, (), "", "0.1.0", "")
    return Card(
        name="mine",
        repo="me/mine",
        run="demo",
        iteration=iteration,
        recipe=recipe,
        metadata=Metadata(),
        report=RunReport("demo", "tiny", 1.0, (), ()),
        report_json="",
        mean_tokens=(),
        scores=scores(artifact),
        checks=None,
        verdict=None,
        comparisons=parse_comparisons(artifact.text(COMPARISONS_FILE), ""),
        portions=(),
        source_digests={},
        judge_digest=None,
        trained=(),
        hardware=None,
        versions={},
        weights=made,
        files=(),
        lineage=(),
    )


def test_the_cards_model_index_has_nine_entries_that_no_reader_merges(store: Store, tiny: Recipe) -> None:
    artifact = benchmark(store, tiny, 1, nine(store, "0", "+--"), nine(store, "1", "++-"))
    entries = front_matter(card_of(artifact, tiny, 1)).to_dict()["model-index"][0]["results"]
    assert [entry["dataset"]["name"] for entry in entries] == [task.card_name for task in TASKS.values()]
    kinds = {(entry["dataset"]["type"], entry["dataset"]["split"]) for entry in entries}
    assert len(kinds) == 9
    assert all(len(entry["metrics"]) == 1 for entry in entries)
    assert [entry["metrics"][0]["value"] for entry in entries if entry["dataset"]["name"] == "OAB Exams"] == [66.67]


def test_every_number_of_the_card_has_its_interval_and_n_beside_it(store: Store, tiny: Recipe) -> None:
    artifact = benchmark(store, tiny, 1, nine(store, "0", "+--"), nine(store, "1", "++-"))
    card = card_of(artifact, tiny, 1)
    assert all(score.n is not None and score.low is not None for score in card.scores.scores)
    assert {score.dataset.sha256 for score in card.scores.scores if score.dataset} == {SHA256}
    shown = benchmark_tables(card)
    assert "| OAB Exams | accuracy | 33.33 % [0.00, 100.00], n = 3 | 66.67 % [0.00, 100.00], n = 3 |" in shown
    assert "| shots that were left out | 2, of the prompts of iteration 1 |" in shown
    found = comparisons(artifact)
    assert found.keys() == {(0, task.card_name) for task in TASKS.values()} | {(0, "average")}
    # one of nine tasks gained a third: 33.3 / 9 points, over all 8 x 12 + 3 rows
    assert (found[0, "average"].difference, found[0, "average"].n) == (pytest.approx(100 / 27), 99)
    changes = comparison_table(card)
    assert "in this table: where that is above 0.05" in changes
    assert "| +33.33 points [+0.00, +100.00], n = 3 | McNemar&#39;s" not in changes  # an apostrophe is no markup
    cells = "| base | +33.33 points [+0.00, +100.00], n = 3 | McNemar's exact test, 1 gained and 0 lost | 1 | 1 |"
    assert cells in changes


def test_a_group_is_shown_by_its_mean_and_compared_over_all_its_rows(store: Store, tiny: Recipe) -> None:
    # two of four rows right, then all: two gained of two, p = 2/4
    base = measured(store, "0", {"mmlu": {"law": answers("+--"), "anatomy": answers("+")}})
    first = measured(store, "1", {"mmlu": {"law": answers("+++"), "anatomy": answers("+")}})
    artifact = benchmark(store, tiny, 1, base, first)
    assert [(score.policy, score.name, score.value) for score in scores(artifact).scores] == [
        (0, "mmlu, acc", 0.5),
        (1, "mmlu, acc", 1.0),
    ]
    [found] = comparisons(artifact).values()
    assert (found.name, found.n, found.difference, found.only_policy, found.p) == ("mmlu, acc", 4, 0.5, 2, 0.5)


def test_one_task_asked_in_two_ways_stays_two_scores(store: Store, tiny: Recipe) -> None:
    row = [measured(store, way, {"gsm8k": {"gsm8k": answers(way)}}) for way in ("++--", "+---")]
    artifact = store.build(sppo.benchmark.step(tiny, 1, {}, {1: row}))
    assert [(score.group, score.name, score.value) for score in scores(artifact).scores] == [
        ("lm-evaluation-harness", "gsm8k, acc", 0.5),
        ("lm-evaluation-harness, entry 2", "gsm8k, acc", 0.25),
    ]
    entries = front_matter(card_of(artifact, tiny, 1)).to_dict()["model-index"][0]["results"]
    assert [entry["dataset"].get("config") for entry in entries] == [None, "entry 2"]


def test_a_task_that_two_names_of_an_entry_have_is_shown_once(store: Store, tiny: Recipe) -> None:
    # a group without a mean of its own, such as openllm, and one of its tasks by its own name
    told: dict[str, Answered] = {
        "gsm8k": {"gsm8k": answers("++--")},
        "openllm": {"gsm8k": answers("++--"), "arc": answers("+-")},
    }
    policies = [measured(store, name, told, averaged=False) for name in ("0", "1")]
    artifact = benchmark(store, tiny, 1, *policies)
    assert [score.name for score in scores(artifact).scores if score.policy == 1] == ["gsm8k, acc", "arc, acc"]
    assert comparisons(artifact).keys() == {(0, "gsm8k, acc"), (0, "arc, acc")}
    assert artifact.manifest.counts["comparisons"] == 2


def test_a_score_that_is_no_number_is_left_out_and_named(store: Store, tiny: Recipe) -> None:
    artifact = measured(store, "1", {"arc": {"arc": answers("+-")}, "cola": {"cola": []}})
    made = store.build(sppo.benchmark.step(tiny, 1, {}, {1: [artifact]}))
    assert [score.name for score in scores(made).scores] == ["arc, acc"]
    assert scores(made).notes["lm-evaluation-harness"]["without a number"] == "cola, acc"


def test_what_was_asked_otherwise_is_left_out_and_named(store: Store, tiny: Recipe) -> None:
    base = measured(store, "0", {"gsm8k": {"gsm8k": answers("+--")}, "arc": {"arc": answers("+")}})
    other = measured(store, "1", {"gsm8k": {"gsm8k": answers("+-")}, "arc": {"arc": answers("+")}})
    found = parse_comparisons(benchmark(store, tiny, 1, base, other).text(COMPARISONS_FILE), "")
    assert [each.name for each in found.comparisons] == ["arc, acc"]
    assert [(each.what, each.why) for each in found.left_out] == [("gsm8k", "whose questions have changed in between")]
    by_another = measured(store, "0", {"arc": {"arc": answers("+")}}, **{"generation.engine": "transformers"})
    artifact = benchmark(store, tiny, 1, by_another, measured(store, "1", {"arc": {"arc": answers("+")}}))
    [left_out] = parse_comparisons(artifact.text(COMPARISONS_FILE), "").left_out
    assert left_out.why == "which was asked otherwise: generation.engine is transformers there and vllm here"
    told = comparison_table(card_of(artifact, tiny, 1))
    assert told.startswith("Not compared with base: lm-evaluation-harness, which was asked otherwise: generation.engine is")


def test_a_policy_that_was_not_measured_has_no_benchmark(store: Store, tiny: Recipe) -> None:
    base = measured(store, "0", {"gsm8k": {"gsm8k": answers("+--")}})
    with pytest.raises(EvaluationError, match="no benchmark has a score of pi_1; expected its artifacts"):
        benchmark(store, tiny, 1, base)


def alpaca(store: Store, policy: str, preferences: Sequence[float]) -> Artifact:
    """AlpacaEval's artifact of a policy, as its stage writes it: preferences for the policy, one an instruction."""
    questions = [Question(f"question {number}", "the reference", "") for number in range(len(preferences))]
    rows = [
        Annotation(
            question.instruction, question.reference, "reference", "an answer" * (1 + number % 3), policy, "judge", 1 + one
        )
        for number, (question, one) in enumerate(zip(questions, preferences, strict=True))
    ]
    found = measure(rows, EvaluationSet(tuple(questions), "reference", "5" * 64), None, 200, 7)
    result = {"group": "AlpacaEval 2, judge j", "notes": {"judge": "j"}, **as_json(found)}

    def run(workspace: Workspace) -> Outcome:
        workspace.add_text(to_json(rows), ANNOTATIONS_FILE)
        workspace.add_text(json.dumps(result), RESULT_FILE)
        workspace.add_table(pa.table({"length_controlled_win_rate": found.refits}), REPLICATES_FILE)
        return Outcome("")

    return store.build(Step(Identity("alpaca-eval", 1, {"policy": policy}, {}), run))


def test_alpaca_eval_is_in_the_same_table_and_the_same_family(store: Store, tiny: Recipe) -> None:
    # 20 of 40 preferences rise from 0.1 to 0.9: 40 points; of the task beside it eight answers of ten are gained: 2/256
    judged = {0: alpaca(store, "0", [0.9] * 10 + [0.1] * 30), 1: alpaca(store, "1", [0.9] * 30 + [0.1] * 10)}
    marks = ("--------++", "++++++++++")
    harness = {
        number: [measured(store, str(number), {OAB.name: {OAB.name: answers(mark)}})] for number, mark in enumerate(marks)
    }
    artifact = store.build(sppo.benchmark.step(tiny, 1, judged, harness))
    group = "AlpacaEval 2, judge j"
    rates = {(score.policy, score.name): score for score in scores(artifact).scores if score.group == group}
    assert (rates[0, "win rate"].value, rates[1, "win rate"].value) == (pytest.approx(30), pytest.approx(70))
    assert scores(artifact).notes[group] == {"judge": "j"}
    found = comparisons(artifact)
    assert found.keys() == {(0, "win rate"), (0, "length-only win rate"), (0, "OAB Exams")}
    rate, oab = found[0, "win rate"], found[0, "OAB Exams"]
    assert (rate.group, rate.test, rate.n, rate.unit) == (group, "paired bootstrap", 40, "points")
    assert rate.difference == pytest.approx(40)
    assert 0 < rate.low < 40 < rate.high
    assert rate.p == pytest.approx(1 / 201)  # none of 200 resamples is as far out
    assert (oab.p, oab.adjusted_p) == (2 / 256, max(2 / 256, 3 / 201, 2 / 201))  # the last of three


# before a run


def asking(recipe: Recipe, *entries: Harness, tables: str | None = None) -> Recipe:
    changes = {"harness": entries, "portuguese_tables": tables}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changes)})


def test_a_served_model_says_nothing_of_a_runs_policy(tiny: Recipe) -> None:
    served = Served(source=Endpoint(url="http://localhost:1/v1"), model="big", system_role="keep")
    with pytest.raises(RecipeError, match=r"evaluation\.harness, entry 1, asks the served model big, which says nothing of"):
        check_benchmarks(asking(tiny, Harness(tasks=("gsm8k",), backend=served)))


def test_a_recipe_without_benchmarks_needs_none_of_it(tiny: Recipe) -> None:
    check_benchmarks(tiny)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_library_a_run_does_not_begin(tiny: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"entry 1: lm-evaluation-harness is not installed; expected the extra `evaluation`"):
        check_benchmarks(asking(tiny, Harness(tasks=("gsm8k",))))


needs_library = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")


@needs_library
def test_tables_that_are_not_there_are_found_out_before_a_run(tiny: Recipe, tmp_path: Path) -> None:
    harness = Harness(tasks=("sppo_pt_oab",))
    with pytest.raises(RecipeError, match=r"entry 1: sppo_pt_oab needs the tables .* sppo fetch-tables"):
        check_benchmarks(asking(tiny, harness))
    with pytest.raises(RecipeError, match=r"entry 1: no manifest\.json in .* sppo fetch-tables"):
        check_benchmarks(asking(tiny, harness, tables=str(tmp_path)))
    with pytest.raises(RecipeError, match=r"entry 1: .* holds credentials; expected none"):
        check_benchmarks(asking(tiny, harness, tables="s3://key:secret@bucket"))
    write(str(tmp_path), {table_key(RTE.table, "test"): (pa.table({"idx": [1]}), "made")})
    with pytest.raises(RecipeError, match=r"holds no eduagarcia/oab_exams/train\.parquet; it holds assin2/test\.parquet"):
        check_benchmarks(asking(tiny, harness, tables=str(tmp_path)))


@needs_library
def test_a_misspelt_task_is_found_out_before_a_run(tiny: Recipe) -> None:
    check_benchmarks(asking(tiny, Harness(tasks=("gsm8k", "openllm"))))
    with pytest.raises(RecipeError, match=r"entry 2: lm-evaluation-harness knows no task 'gsm8kk'; .* such as gsm8k"):
        check_benchmarks(asking(tiny, Harness(tasks=("gsm8k",)), Harness(tasks=("gsm8kk",))))


@needs_library
def test_portuguese_tasks_are_asked_in_one_way(tiny: Recipe, tmp_path: Path) -> None:
    write(str(tmp_path), {table_key(OAB.table, "train"): (pa.table({"id": [1]}), "made")})
    twice = asking(tiny, *(Harness(tasks=("sppo_pt_oab",), chat=chat) for chat in (True, False)), tables=str(tmp_path))
    with pytest.raises(RecipeError, match=r"Portuguese tasks in entries 1, 2; expected them in one, asked alike"):
        check_benchmarks(twice)
