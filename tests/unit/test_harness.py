"""What a harness entry of a recipe means, and how scores are kept."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from sppo.errors import EvaluationError
from sppo.hardware import Hardware
from sppo.harness import Score, build, right_answers
from sppo.harness.scores import ROWS, SCORES, from_table, part_name, to_table
from sppo.portuguese.tasks import TASKS
from sppo.recipe import Endpoint, Recipe
from sppo.recipe.harness import Harness, Served
from sppo.stages import plan_fingerprints
from sppo.statistics import Interval
from sppo.store import Store
from sppo.workers.harness import outermost


def test_our_tag_stands_for_the_nine_and_every_task_is_asked_once() -> None:
    harness = Harness(tasks=("gsm8k", "sppo_pt_oab", "sppo_pt", "gsm8k"))
    assert harness.names() == ["gsm8k", "sppo_pt_oab", *(name for name in TASKS if name != "sppo_pt_oab")]


def test_an_entry_is_read_as_a_recipe_is() -> None:
    served = {"source": {"url": "http://localhost:8000/v1"}, "model": "m", "system_role": "fold"}
    harness = Harness.model_validate_json(json.dumps({"tasks": ["sppo_pt"], "backend": served, "max_rows": 10}))
    assert isinstance(harness.backend, Served)
    assert (harness.portuguese_length, harness.chat, harness.max_rows) == (2560, True, 10)
    with pytest.raises(ValidationError, match="at least 1 item"):
        Harness(tasks=())


def test_scores_survive_their_table() -> None:
    scores = [
        Score("sppo_pt_oab", "acc", "answer", Interval(0.5, 0.4, 0.6, 100), True, 3, "1"),
        Score("mmlu", "acc", "none", Interval(0.25, 0.2, 0.3, 14042), None, None, "2"),
        Score("mmlu_anatomy", "acc", "none", Interval(0.25, 0.2, 0.3, 135), True, 5, "1", within="mmlu"),
    ]
    table = to_table(scores)
    assert table.schema == SCORES
    assert from_table(pa.concat_tables([table, table])) == scores * 2


def row_of(task: str, row: int, scores: dict[str, object], filter_name: str = "answer") -> dict[str, object]:
    empty: dict[str, object] = {name: "" for name in ("document", "prompt", "target")}
    lists: dict[str, object] = {name: [] for name in ("continuations", "replies", "answers")}
    return {**empty, **lists, "task": task, "row": row, "filter": filter_name, "scores": json.dumps(scores)}


def test_rows_say_which_answers_were_right_for_pairing_two_models() -> None:
    rows = pa.Table.from_pylist(
        [
            row_of("sppo_pt_oab", 0, {"acc": ["A", "A"]}),
            row_of("sppo_pt_oab", 1, {"acc": ["B", "[invalid]"]}),
            row_of("arc_easy", 0, {"acc": 1.0, "acc_norm": 0.0}, "none"),
            row_of("ifeval", 0, {"inst_level_strict_acc": [True, False, True]}, "lists"),
        ],
        schema=ROWS,
    )
    assert right_answers(rows, "acc", "answer") == {("sppo_pt_oab", 0): True, ("sppo_pt_oab", 1): False}
    assert right_answers(rows, "acc_norm", "none") == {("arc_easy", 0): False}
    with pytest.raises(
        EvaluationError, match=r"inst_level_strict_acc of row 0 of ifeval is \[True, False, True\]; expected 0 or 1"
    ):
        right_answers(rows, "inst_level_strict_acc", "lists")


def test_a_parts_name_is_a_file_name_whatever_the_task_is_called() -> None:
    assert part_name("sppo_pt_oab") == "sppo_pt_oab"
    assert part_name("mmlu::stem/x y") == "mmlu--stem-x-y"


class Of:
    """Tasks or groups of upstream's, as far as their names."""

    def __init__(self, name: str, members: Sequence["Of"] = (), averaged: bool = True) -> None:
        self.name = self.task_name = name
        self.members = members
        self.aggregate_metric_list = ["acc"] if averaged else None

    def get_all_groups(self) -> list["Of"]:
        return [found for one in self.members if one.members for found in (one, *one.get_all_groups())]

    def get_all_tasks(self) -> list["Of"]:
        return [found for one in self.members for found in (one.get_all_tasks() if one.members else [one])]


def test_a_task_counts_in_the_largest_group_that_has_a_mean_of_its_own() -> None:
    stem = Of("mmlu_stem", [Of("anatomy"), Of("physics")])
    mmlu = Of("mmlu", [stem, Of("law")])
    openllm = Of("openllm", [mmlu, Of("gsm8k")], averaged=False)  # shows its tasks one by one
    assert outermost([openllm, mmlu, stem]) == {
        "anatomy": "mmlu",
        "physics": "mmlu",
        "law": "mmlu",
        "mmlu_stem": "mmlu",
    }


def asking(recipe: Recipe, *entries: Harness, tables: str | None = None) -> Recipe:
    changes = {"harness": entries, "portuguese_tables": tables}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changes)})


SERVED = Served(source=Endpoint(url="http://localhost:1/v1"), model="m", system_role="keep")


def test_what_is_not_asked_of_a_server_needs_a_policy(store: Store, cpu: Hardware, tiny: Recipe) -> None:
    assert build(store, tiny, cpu) == []
    with pytest.raises(EvaluationError, match="harness of gsm8k is asked with vllm, and no policy was given; expected one"):
        build(store, asking(tiny, Harness(tasks=("gsm8k",), backend="vllm")), cpu)
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(EvaluationError, match="lm-evaluation-harness is not installed; expected the extra `evaluation`"):
            build(store, asking(tiny, Harness(tasks=("gsm8k",), backend=SERVED)), cpu)


def test_portuguese_tasks_need_their_tables(store: Store, cpu: Hardware, tiny: Recipe, tmp_path: Path) -> None:
    harness = Harness(tasks=("sppo_pt_oab",), backend=SERVED)
    with pytest.raises(EvaluationError, match=r"sppo_pt_oab needs the tables .*: fetch them there once with sppo fetch-tables"):
        build(store, asking(tiny, harness), cpu)
    with pytest.raises(EvaluationError, match=r"no manifest.json in .*: fetch them there once with sppo fetch-tables"):
        build(store, asking(tiny, harness, tables=str(tmp_path)), cpu)


def test_the_stages_of_a_recipe_without_benchmarks_are_those_it_had_before(tiny: Recipe) -> None:
    before, after = (plan_fingerprints(recipe) for recipe in (tiny, asking(tiny, Harness(tasks=("gsm8k",)))))
    assert {"harness", "benchmark"}.isdisjoint(before)
    assert list(after) == [*before, "harness", "benchmark"]
    assert before.items() <= after.items()
