"""Benchmarks as stages of an iteration: AlpacaEval on a set of one's own, a task of lm-evaluation-harness, a card of both."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from flows.evaluation import sppo_evaluation
from flows.iteration import sppo_iteration
from flows.local_run import evaluation_lines
from flows.status import show_status
from sppo.card import Metadata, parse_comparisons, read_card, write_folder
from sppo.card.scores import parse_scores
from sppo.errors import RecipeError
from sppo.fingerprint import file_sha256
from sppo.portuguese import tables
from sppo.portuguese.tasks import TASKS
from sppo.runs import IterationIndex
from sppo.store import Store
from sppo.verify import verify_run

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
RUN = "measured"
TASK = TASKS["sppo_pt_enem"]


@pytest.fixture(scope="module")
def measured(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a flow whose recipe asks for both."""
    folder = tmp_path_factory.mktemp("benchmarks")
    questions = [
        {"dataset": "own", "instruction": f"Name {number} birds.", "output": "A wren.", "generator": "the-reference"}
        for number in range(10)
    ]
    (folder / "set.json").write_text(json.dumps(questions))
    rows = [
        {
            "id": name,
            "question": f"Quem é {name}?",
            "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["a", "b", "c", "d", "e"]},
            "answerKey": "ABCDE"[number % 5],
        }
        for number, name in enumerate([*TASK.shot_ids, "q0", "q1"])
    ]
    made = {tables.table_key(TASK.table, split): (pa.Table.from_pylist(rows), "made") for split in TASK.splits}
    root = tables.write(str(folder / "tables"), made).root
    judge = next(each for each in small["overrides"] if each.startswith("judge=")).removeprefix("judge=")
    files = (
        f"evaluation_set: {{source: {folder / 'set.json'}, sha256: {file_sha256(folder / 'set.json')}}}, gamed_baselines: null"
    )
    decoding = "decoding: {temperature: 1.0, top_p: 1.0, max_tokens: 8}"
    overrides = (
        *small["overrides"],
        f"evaluation.alpaca_eval={{judge: {judge}, {decoding}, {files}}}",
        "evaluation.harness=[{tasks: [sppo_pt_enem], max_rows: 2}]",
        f"evaluation.portuguese_tables={root}",
    )
    return small | {"overrides": overrides}


@pytest.fixture(scope="module")
def index(measured: dict[str, Any]) -> IterationIndex:
    return sppo_iteration(**measured, run=RUN, iteration=1)


def test_an_iteration_measures_what_its_recipe_asks_for(measured: dict[str, Any], index: IterationIndex) -> None:
    store = Store(measured["store"])
    made = {name for name in index.artifacts if name.startswith(("alpaca", "harness", "benchmark"))}
    stages = ("alpaca-prompts", "alpaca-answer", "alpaca-judge", "alpaca-eval")
    by_policy = {f"{stage}.{policy}" for stage in stages for policy in (0, 1)}
    assert made == {"alpaca-reference", *by_policy, "harness.0.0", "harness.1.0", "benchmark"}
    benchmark = index.opened(store, "benchmark")
    scores = parse_scores(benchmark.text("scores.json"), benchmark.name).scores
    assert {score.policy for score in scores} == {0, 1}
    assert all(score.low is not None and score.high is not None and score.n for score in scores)
    assert any(score.group == "against the-reference, judge pairrm" for score in scores)
    comparisons = parse_comparisons(benchmark.text("comparisons.json"), benchmark.name)
    assert {(each.policy, each.against) for each in comparisons.comparisons} == {(1, 0)}
    assert [verified.problem for verified in verify_run(store, RUN) if verified.problem] == []


def test_both_policies_answered_in_the_loads_that_drew_their_held_out_answers(
    measured: dict[str, Any], index: IterationIndex
) -> None:
    store = Store(measured["store"])
    for policy in (0, 1):
        answer, sample = (index.opened(store, f"{name}.{policy}").manifest for name in ("alpaca-answer", "sample"))
        assert answer.inputs["policy"] == sample.inputs["policy"]
        assert answer.counts["prompts"] == 10
    # of the policy that this run was the first to draw from with these prompts
    assert index.opened(store, "alpaca-answer.0").digest != index.opened(store, "alpaca-answer.1").digest


def test_the_status_of_such_a_run_knows_every_stage(measured: dict[str, Any], index: IterationIndex) -> None:
    written = StringIO()
    show_status(Console(file=written, width=120), Store(measured["store"]), RUN)
    assert "1 of 2 iterations finished" in written.getvalue()


def test_the_card_of_such_a_run_has_the_numbers(measured: dict[str, Any], index: IterationIndex, tmp_path: Path) -> None:
    card = read_card(Store(measured["store"]), RUN, 1, "owner/name", Metadata("apache-2.0", "owner/base", languages=()), [])
    written = write_folder(card, tmp_path / "card")
    text = written["README.md"].read_text()
    assert "against the-reference, judge pairrm" in text
    assert "ENEM Challenge" in text


def test_an_evaluation_of_models_measures_the_same(
    measured: dict[str, Any], index: IterationIndex, random_policy: Callable[[str], Path]
) -> None:
    trained = index.artifacts["train"].reference
    [report] = sppo_evaluation(
        measured["hardware"], measured["store"], recipe="tiny", models=[trained], overrides=measured["overrides"]
    )
    assert report["artifacts"][-1] == index.artifacts["benchmark"].reference
    lines = list(evaluation_lines(report, ["the recipe's policy", trained]))
    assert any("against the-reference, judge pairrm, win rate: " in line and ", n = 10 %" in line for line in lines)


def test_what_cannot_be_measured_is_found_out_before_anything_runs(measured: dict[str, Any]) -> None:
    overrides = (*measured["overrides"], "evaluation.harness=[{tasks: [sppo_pt_bluex]}]")
    with pytest.raises(RecipeError, match=r"evaluation\.harness, entry 1: .*BLUEX"):
        sppo_iteration(**measured | {"overrides": overrides}, run="unmeasurable", iteration=1)
