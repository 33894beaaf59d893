"""Held-out win rates, by hand."""

import pyarrow as pa
import pytest

from sppo.errors import EstimateError
from sppo.evaluate import judge_names, lengths, prompt_win_rates
from sppo.recipe import Recipe
from sppo.records import Response, to_table


def test_a_prompts_win_rate_averages_both_orders_and_all_pairs() -> None:
    # one new answer against two others: pair 0: (2 - -2) / 2 = 2; pair 1: (0 - 2) / 2 = -1
    # (sigmoid(2) + sigmoid(-1)) / 2 = (0.880797 + 0.268941) / 2 = 0.574869
    duel = pa.table({"prompt_id": ["p"], "first": [1], "second": [2], "forward": [[2.0, 0.0]], "backward": [[-2.0, 2.0]]})
    prompt_ids, rates, left_open = prompt_win_rates(duel)
    assert (prompt_ids, left_open) == (["p"], 0)
    assert rates == pytest.approx([0.574869], abs=1e-6)


def test_forward_and_backward_are_matched_pair_by_pair() -> None:
    # 2 x 2: only (new 0, other 1) is decided, by +4 one way and -4 the other; the rest is even
    duel = pa.table(
        {
            "prompt_id": ["p"],
            "first": [2],
            "second": [2],
            "forward": [[0.0, 4.0, 0.0, 0.0]],
            "backward": [[0.0, 0.0, -4.0, 0.0]],
        }
    )
    # backward[other 1, new 0] is its third value; (0.5 * 3 + sigmoid(4)) / 4 = (1.5 + 0.982014) / 4
    assert prompt_win_rates(duel)[1] == pytest.approx([0.620503], abs=1e-6)


def test_a_pair_without_a_verdict_is_left_out_and_counted_never_one_half() -> None:
    # p: of three pairs the second lacks one order; (sigmoid(2) + sigmoid(1)) / 2 = (0.880797 + 0.731059) / 2. q: none at all
    nan = float("nan")
    rows = {"prompt_id": ["p", "q"], "first": [1, 1], "second": [3, 1], "forward": [[2.0, 3.0, 2.0], [nan]]}
    duel = pa.table({**rows, "backward": [[-2.0, nan, 0.0], [1.0]]})
    prompt_ids, rates, left_open = prompt_win_rates(duel)
    assert (prompt_ids, left_open) == (["p"], 2)
    assert rates == pytest.approx([0.805928], abs=1e-6)


def test_without_any_verdict_there_is_no_win_rate() -> None:
    duel = pa.table({"prompt_id": ["p"], "first": [1], "second": [1], "forward": [[float("nan")]], "backward": [[0.0]]})
    with pytest.raises(EstimateError, match=r"none of 1 held-out prompts .* delete the duel artifact"):
        prompt_win_rates(duel)


def test_an_infinite_logit_is_an_error() -> None:
    duel = pa.table({"prompt_id": ["p"], "first": [1], "second": [1], "forward": [[float("inf")]], "backward": [[0.0]]})
    with pytest.raises(EstimateError, match="held-out prompt p is infinite"):
        prompt_win_rates(duel)


def test_lengths_count_characters_tokens_and_cut_answers() -> None:
    rows = [Response("a", 0, [5, 6], "héllo", "stop", [0.0, 0.0], 1), Response("a", 1, [5], "abc", "length", [0.0], 1)]
    assert lengths(to_table(Response, rows)) == {
        "mean_characters": 4.0,
        "median_characters": 4.0,
        "mean_tokens": 1.5,
        "cut_share": 0.5,
    }


def test_two_judges_of_one_kind_get_different_names(tiny: Recipe) -> None:
    first = tiny.evaluation.judges[0]
    twice = tiny.model_copy(update={"evaluation": tiny.evaluation.model_copy(update={"judges": (first, first)})})
    assert judge_names(twice) == ["pairrm", "pairrm 2"]
