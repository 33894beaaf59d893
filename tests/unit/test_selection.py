"""Which responses are trained on: each treatment of each trait, on matrices small enough to see."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sppo.hygiene import Traits
from sppo.recipe import Selection
from sppo.selection import ROLES, select

NONE: tuple[int, ...] = ()
TRAITS = pytest.mark.parametrize(
    ("trait", "option", "role"),
    [("are_cut", "cut", "cut"), ("are_empty", "empty", "empty"), ("are_refusals", "refusals", "refusal")],
)


def chosen(
    wins: list[float],
    are_cut: tuple[int, ...] = NONE,
    are_empty: tuple[int, ...] = NONE,
    are_refusals: tuple[int, ...] = NONE,
    alike: tuple[tuple[int, int], ...] = (),
    **rules: Any,
) -> list[str]:
    """Roles of one prompt's responses; those that are trained on in capitals."""
    count = len(wins)
    same = np.eye(count, dtype=bool)
    for one, other in alike:
        same[one, other] = same[other, one] = True
    flags = [np.isin(np.arange(count), has)[None] for has in (are_cut, are_empty, are_refusals)]
    values: dict[str, Any] = {"responses": "extremes", "drop_ties": True} | rules
    selected, roles = select(np.array([wins]), Traits(*flags, same[None]), Selection(**values))
    names = [ROLES[role] for role in roles[0]]
    return [name.upper() if trained else name for name, trained in zip(names, selected[0], strict=True)]


def test_extremes_are_the_best_and_the_worst_of_k() -> None:
    assert chosen([0.4, 0.7, 0.3, 0.6]) == ["other", "BEST", "WORST", "other"]


def test_all_trains_on_every_response() -> None:
    assert chosen([0.4, 0.7, 0.3, 0.6], responses="all") == ["OTHER", "BEST", "WORST", "OTHER"]


def test_extremes_are_the_first_of_equals_and_never_the_same_response() -> None:
    assert chosen([0.5, 0.5, 0.5], drop_ties=False) == ["BEST", "WORST", "other"]
    assert chosen([0.6, 0.6, 0.4, 0.4]) == ["BEST", "other", "WORST", "other"]


@pytest.mark.parametrize("responses", ["extremes", "all"])
def test_ties_are_left_out_up_to_a_width(responses: str) -> None:
    assert chosen([0.502, 0.498, 0.5], responses=responses) == ["tied"] * 3  # .004 apart, within .005
    assert "tied" not in chosen([0.503, 0.497, 0.5], responses=responses)  # .006
    assert "tied" not in chosen([0.502, 0.498, 0.5], responses=responses, tie_width=0.001)
    assert "tied" not in chosen([0.502, 0.498, 0.5], responses=responses, drop_ties=False)


def test_a_width_of_zero_still_drops_what_is_exactly_equal() -> None:
    assert chosen([0.5, 0.5], tie_width=0.0) == ["tied", "tied"]


@TRAITS
def test_each_treatment_of_a_response_that_won(trait: str, option: str, role: str) -> None:
    wins = [0.7, 0.6, 0.3, 0.4]
    assert chosen(wins, **{trait: (0,), option: "keep"}) == ["BEST", "other", "WORST", "other"]
    assert chosen(wins, **{trait: (0,), option: "not_raised"}) == [role, "BEST", "WORST", "other"]
    assert chosen(wins, **{trait: (0,), option: "drop"}) == [role, "BEST", "WORST", "other"]


@TRAITS
def test_each_treatment_of_a_response_that_lost(trait: str, option: str, role: str) -> None:
    wins = [0.7, 0.6, 0.3, 0.4]
    assert chosen(wins, **{trait: (2,), option: "keep"}) == ["BEST", "other", "WORST", "other"]
    assert chosen(wins, **{trait: (2,), option: "not_raised"}) == ["BEST", "other", "WORST", "other"]
    assert chosen(wins, **{trait: (2,), option: "drop"}) == ["BEST", "other", role, "WORST"]


def test_a_response_at_exactly_one_half_is_not_lowered_so_not_raised_leaves_it_out() -> None:
    assert chosen([0.6, 0.5, 0.4], are_cut=(1,), responses="all") == ["BEST", "cut", "WORST"]


def test_by_default_cut_and_empty_responses_are_only_lowered_and_refusals_kept() -> None:
    wins = [0.8, 0.7, 0.6, 0.4, 0.3, 0.2]
    found = chosen(wins, are_cut=(0, 3), are_empty=(1, 4), are_refusals=(2, 5), responses="all")
    assert found == ["cut", "empty", "BEST", "OTHER", "OTHER", "WORST"]


def test_the_best_is_never_one_that_training_would_lower() -> None:
    # the only response above one half is cut: the prompt still has its worst to lower, and nothing to raise
    assert chosen([0.8, 0.4, 0.3], are_cut=(0,)) == ["cut", "other", "WORST"]
    assert chosen([0.7, 0.6, 0.2], are_refusals=(2,), refusals="drop") == ["BEST", "other", "refusal"]


def test_the_first_of_several_reasons_is_told() -> None:
    assert chosen([0.8, 0.6, 0.1], are_cut=(0,), are_empty=(0,), are_refusals=(0,), refusals="drop")[0] == "empty"
    assert chosen([0.8, 0.6, 0.1], are_cut=(0,), are_refusals=(0,), refusals="drop")[0] == "cut"


def test_of_two_that_say_the_same_the_more_extreme_is_trained_on() -> None:
    # |P - 1/2|: .25 of the second beats .2 of the first
    assert chosen([0.7, 0.75, 0.2, 0.35], alike=((0, 1),), responses="all") == ["repeat", "BEST", "WORST", "OTHER"]
    # the best and the worst may not be the same words: the next worst takes the role
    assert chosen([0.7, 0.35, 0.45], alike=((0, 1),)) == ["BEST", "repeat", "WORST"]


def test_of_equal_texts_the_first_stands_for_all() -> None:
    assert chosen([0.6, 0.6, 0.3], alike=((0, 1),), responses="all") == ["BEST", "repeat", "WORST"]


def test_what_stands_for_others_is_itself_trained_on() -> None:
    # 0 says the same as 1, and 1 as 2, but 0 not as 2: only 1 is left out
    assert chosen([0.8, 0.7, 0.6, 0.1], alike=((0, 1), (1, 2)), responses="all") == ["BEST", "repeat", "OTHER", "WORST"]
    # a cut response is not trained on, so its twin is
    assert chosen([0.8, 0.7, 0.1], are_cut=(0,), alike=((0, 1),)) == ["cut", "BEST", "WORST"]


def test_a_prompt_whose_responses_all_say_the_same_is_identical() -> None:
    every = ((0, 1), (0, 2), (1, 2))
    assert chosen([0.6, 0.5, 0.4], alike=every) == ["identical"] * 3
    assert chosen([0.6, 0.52, 0.38], alike=every, drop_ties=False) == ["repeat", "repeat", "WORST"]


@given(
    st.integers(2, 6).flatmap(lambda count: arrays(np.float64, (20, count, count), elements=st.floats(-8, 8))),
    st.sampled_from(["extremes", "all"]),
    st.tuples(*[st.sampled_from(["keep", "not_raised", "drop"])] * 3),
    st.integers(0, 2**32 - 1),
)
def test_nothing_is_raised_or_lowered_against_the_rules(
    logits: Any, responses: Any, treatments: tuple[Any, Any, Any], seed: int
) -> None:
    margins = logits - logits.transpose(0, 2, 1)  # (N, K, K)
    wins = (1 / (1 + np.exp(-margins))).mean(axis=2)  # (N, K), of mean 1/2
    draw = np.random.default_rng(seed)
    cut, empty, refusal = draw.random((3, *wins.shape)) < 0.3
    alike = draw.random(logits.shape) < 0.2
    traits = Traits(cut, empty, refusal, alike | alike.transpose(0, 2, 1) | np.eye(wins.shape[1], dtype=bool))
    rules = Selection(responses=responses, drop_ties=True, cut=treatments[0], empty=treatments[1], refusals=treatments[2])
    selected, codes = select(wins, traits, rules)
    roles = np.array(ROLES)[codes]
    for has, treatment in zip((cut, empty, refusal), treatments, strict=True):
        assert treatment != "drop" or not (selected & has).any()
        assert treatment != "not_raised" or not (selected & has & (wins > 0.5)).any()
    assert (wins[selected & (roles == "best")] >= 0.5 - 1e-9).all()
    assert (wins[selected & (roles == "worst")] <= 0.5 + 1e-9).all()
    assert ((roles == "best").sum(axis=1) <= 1).all()
    assert ((roles == "worst").sum(axis=1) <= 1).all()
    assert set(roles[selected]) <= {"best", "worst", "other"}
    twice = selected[:, :, None] & selected[:, None, :] & traits.alike  # (N, K, K) only each with itself
    assert (twice.sum(axis=(1, 2)) == selected.sum(axis=1)).all()
