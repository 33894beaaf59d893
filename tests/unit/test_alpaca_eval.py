"""AlpacaEval's files and raw win rates: by hand, and to the leaderboard's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sppo.alpaca_eval.annotations import (
    RAW,
    Annotation,
    by_instruction,
    from_json,
    preferences,
    to_json,
    unjudged,
)
from sppo.alpaca_eval.win_rates import mean_length, win_rates
from sppo.errors import EvaluationError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ANNOTATIONS = SHARED / "alpaca_eval_2_annotations.parquet"
RESPONSES = SHARED / "alpaca_eval_responses.parquet"
LEADERBOARD = SHARED / "alpaca_eval_2_leaderboard.csv"

needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS.name} is not there")
needs_responses = pytest.mark.skipif(not RESPONSES.is_file(), reason=f"{RESPONSES.name} is not there")
MODELS = ("FuseChat-Gemma-2-9B-Instruct", "claude-2.1", "gpt-3.5-turbo-1106")


def annotation(instruction: str, preference: float | None, output: str = "ab", **more: object) -> Annotation:
    return Annotation(instruction, "the reference", "reference", output, "model", "judge", preference, more)


def leaderboard() -> dict[str, dict[str, str]]:
    header, *lines = LEADERBOARD.read_text().splitlines()
    names = header.split(",")
    return {line.split(",")[0]: dict(zip(names, line.split(","), strict=True)) for line in lines}


def real_annotations(model: str) -> list[Annotation]:
    """The published judgements of a model; texts are of the right length, and say nothing."""
    rows = [row for row in pq.read_table(ANNOTATIONS).to_pylist() if row["model"] == model]
    return [
        Annotation(
            f"instruction {row['index']}",
            "r" * row["length_baseline"],
            "gpt4_1106_preview",
            "m" * row["length_model"],
            model,
            "weighted_alpaca_eval_gpt4_turbo",
            row["preference"],
        )
        for row in rows
    ]


# --- win rates


def test_a_win_rate_is_the_mean_preference_of_judged_rows() -> None:
    # preferences for the model 0.9, 0.5, 0.2, 0.8 and one row that nobody judged
    found = win_rates([annotation(str(n), p, "x" * (n + 1)) for n, p in enumerate([1.9, 1.5, 1.2, 1.8, None])])
    assert found.win_rate == pytest.approx(60.0)  # 2.4 / 4
    # deviations .3 -.1 -.4 .2: sqrt((.09 + .01 + .16 + .04) / 3) / sqrt(4) = .158114
    assert found.standard_error == pytest.approx(15.8114, abs=1e-4)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total, found.unjudged) == (2, 1, 1, 4, 1)
    assert found.discrete_win_rate == 62.5  # (2 + 1/2) / 4
    assert found.avg_length == 3  # (1 + 2 + 3 + 4 + 5) / 5: what the model wrote, judged or not


def test_a_mean_length_is_cut_as_published() -> None:
    assert mean_length(["abc", "abcd", "abcd"]) == 3  # 11 / 3 = 3.67
    assert mean_length(["Füchse 🦊"]) == 8  # characters, not bytes


def test_one_row_has_no_standard_error_and_no_row_no_win_rate() -> None:
    assert math.isnan(win_rates([annotation("a", 1.5)]).standard_error)
    with pytest.raises(EvaluationError, match="none of 2 rows was judged"):
        win_rates([annotation("a", None), annotation("b", None)])


@needs_annotations
@pytest.mark.parametrize("model", MODELS)
def test_raw_numbers_are_the_leaderboards(model: str) -> None:
    found, published = win_rates(real_annotations(model)), leaderboard()[model]
    assert found.win_rate == pytest.approx(float(published["win_rate"]), abs=1e-6)
    assert found.standard_error == pytest.approx(float(published["standard_error"]), abs=1e-6)
    assert found.discrete_win_rate == pytest.approx(float(published["discrete_win_rate"]), abs=1e-6)
    assert (found.avg_length, found.unjudged) == (int(published["avg_length"]), 0)
    counts = (found.n_wins, found.n_wins_base, found.n_draws, found.n_total)
    assert counts == tuple(int(published[name]) for name in ("n_wins", "n_wins_base", "n_draws", "n_total"))


@needs_responses
@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("SPPO-Gemma-2-9B-It-PairRM", 1803),
        ("SPPO-Llama-3-Instruct-8B-PairRM", 2066),
        ("SPPO-Mistral7B-PairRM", 2114),
    ],
)
def test_lengths_of_the_published_answers_are_the_leaderboards(model: str, published: int) -> None:
    assert mean_length(pq.read_table(RESPONSES)[model].to_pylist()) == published == int(leaderboard()[model]["avg_length"])


# --- annotations


def test_annotations_come_back_as_they_were_written() -> None:
    rows = [
        annotation("Füchse 🦊?", 1.25, "Sie \\ / laufen.\n", dataset="vicuna").with_verdict(1.75, {"order": "both"}),
        annotation("Not judged", None, dataset="vicuna", preference_price_per_example=0.01),
    ]
    text = to_json(rows)
    assert from_json(text) == rows
    assert text.isascii()
    first, second = json.loads(text)
    assert list(first) == [
        "instruction",
        "dataset",
        "output_1",
        "generator_1",
        "output_2",
        "generator_2",
        "annotator",
        "preference",
        RAW,
    ]
    assert (first["preference"], second["preference"]) == (1.75, None)


def test_a_row_without_a_verdict_is_never_a_draw() -> None:
    rows = [annotation("a", None), annotation("b", 1.5), annotation("c", 1.0)]
    np.testing.assert_array_equal(preferences(rows), [math.nan, 0.5, 0.0])
    assert unjudged(rows) == rows[:1]


def test_what_alpaca_eval_has_written_is_read() -> None:
    row = json.loads(to_json([annotation("a", 1.0)]))[0]
    # a draw of its older versions, a missing row of its cache and of its results, a whole number
    for written, expected in [(0, 1.5), (-1, None), (math.nan, None), (None, None), (2, 2.0)]:
        (found,) = from_json(json.dumps([{**row, "preference": written, "raw_completion": {"text": "m"}}]))
        assert found.preference == expected
        assert found.more["raw_completion"] == {"text": "m"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": 0.5}, r"row 2: preference is 0.5; expected 1 .* to 2 .*, or null"),
        ({"preference": "m"}, "row 2: preference is 'm'"),
        ({"preference": True}, "row 2: preference is True"),
        ({"output_2": None}, "row 2: output_2 is None; expected text, in the columns instruction, output_1"),
        ({"instruction": "a"}, "instruction 'a' is annotated twice"),
    ],
)
def test_a_row_that_cannot_be_meant_is_an_error(change: dict[str, object], message: str) -> None:
    first, second = json.loads(to_json([annotation("a", 1.0), annotation("b", 1.0)]))
    with pytest.raises(EvaluationError, match=message):
        from_json(json.dumps([first, {**second, **change}]))


@pytest.mark.parametrize("text", ["[", '{"instruction": "a"}', "[1]"])
def test_what_is_no_list_of_rows_is_an_error(text: str) -> None:
    with pytest.raises(EvaluationError, match=r"annotations\.json (is not JSON|holds)"):
        from_json(text)


def test_a_long_instruction_is_shown_by_its_beginning() -> None:
    with pytest.raises(EvaluationError, match=r"instruction 'x{60}\.\.' is annotated twice"):
        by_instruction([annotation("x" * 100, 1.0), annotation("x" * 100, 2.0)])
