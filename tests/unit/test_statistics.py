"""Intervals and tests over prompts, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo.errors import EvaluationError
from sppo.statistics import (
    BLOCK,
    Interval,
    difference,
    draws,
    holm,
    mcnemar,
    mean_interval,
    mean_replicates,
    paired_difference,
    percentile_interval,
    ratio_interval,
    replicates,
)

# --- resamples


def test_the_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(1).uniform(size=400)
    found = mean_interval(values, 2000, seed=7)
    # the standard error of a uniform mean of 400 is sqrt(1/12) / 20 = 0.01443; 1.96 of them each side
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.01443, rel=0.1)
    assert found.low < found.value < found.high
    assert (found.value, found.n) == (pytest.approx(values.mean()), 400)


def test_equal_seeds_give_equal_intervals_and_others_give_others() -> None:
    values = np.random.default_rng(1).uniform(size=50)
    assert mean_interval(values, 700, seed=3) == mean_interval(values, 700, seed=3)
    assert mean_interval(values, 700, seed=3) != mean_interval(values, 700, seed=4)


def test_draws_are_those_of_one_generator_in_blocks() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.integers(7, size=(BLOCK, 7)), generator.integers(7, size=(3, 7))
    blocks = list(draws(7, BLOCK + 3, seed=5))
    assert [block.shape for block in blocks] == [(BLOCK, 7), (3, 7)]
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate([first, second]))


def test_a_replicate_is_the_statistic_of_the_prompts_drawn() -> None:
    values = np.array([1.0, 10.0, 100.0])
    (drawn,) = draws(3, 4, seed=2)
    by_hand = [sum(values[position] for position in row) / 3 for row in drawn.tolist()]
    assert mean_replicates(values, 4, seed=2).tolist() == pytest.approx(by_hand)
    largest = replicates(lambda block: values[block].max(axis=1), 3, 4, seed=2)
    assert largest.tolist() == [max(values[position] for position in row) for row in drawn.tolist()]


def test_an_interval_holds_the_middle_of_its_replicates() -> None:
    # 0, 1, .., 1000: 2.5 % below 25, 2.5 % above 975; at 90 % below 50 and above 950
    found = np.arange(1001.0)
    at_95, at_90 = percentile_interval(500.0, found, 12), percentile_interval(500.0, found, 12, level=0.9)
    assert (at_95.low, at_95.high) == (pytest.approx(25.0), pytest.approx(975.0))
    assert (at_90.low, at_90.high) == (pytest.approx(50.0), pytest.approx(950.0))
    assert (at_95.value, at_95.n) == (500.0, 12)
    assert str(Interval(0.5, 0.25, 0.75, 12)) == "0.500 [0.250, 0.750], n = 12"


def test_a_share_over_rows_weighs_a_prompt_by_its_rows() -> None:
    # 1 of 1 and 0 of 9 rows: 1 of 10, where the mean of the prompts' shares would be 1/2
    found = ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 9.0]), 2000, seed=1)
    # a resample has the first prompt twice (share 1), each once (0.1) or the second twice (0)
    assert (found.value, found.low, found.high, found.n) == (0.1, 0.0, 1.0, 2)


def test_a_resample_without_rows_is_left_out() -> None:
    # of two prompts one has no rows: a quarter of the resamples are of that one alone; all others have the share 1/2
    found = ratio_interval(np.array([2.0, 0.0]), np.array([4.0, 0.0]), 200, seed=1)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("denominators", [[0.0, 0.0], [2.0, -1.0]])
def test_a_share_of_nothing_is_an_error(denominators: list[float]) -> None:
    with pytest.raises(EvaluationError, match=r"denominators of 2 prompts are from .* expected counts, not all 0"):
        ratio_interval(np.zeros(2), np.array(denominators), 10)


def test_no_prompt_and_a_value_that_is_none_are_errors() -> None:
    with pytest.raises(EvaluationError, match="no prompt has a value"):
        mean_interval(np.zeros(0), 10)
    with pytest.raises(EvaluationError, match=r"value of prompt 1 of 3 is nan; .* leave prompts without a verdict out"):
        mean_interval(np.array([0.5, math.nan, 0.5]), 10)


# --- differences


def test_what_two_models_share_cancels_in_a_paired_difference() -> None:
    hard = np.random.default_rng(3).uniform(size=300)  # how a prompt goes for both
    found = paired_difference(hard + 0.01, hard, 1000, seed=1)
    # the difference is 0.01 on each prompt, so in each resample, though each mean moves by sqrt(1/12/300) = 0.017
    assert found.interval.low == pytest.approx(0.01)
    assert found.interval.high == pytest.approx(0.01)
    assert found.interval.n == 300
    # no shifted replicate is as far from 0 as 0.01: only the difference itself
    assert found.p_value == pytest.approx(1 / 1001)


def test_p_counts_the_shifted_replicates_that_are_as_far_out() -> None:
    # value 2; replicates less 2 are -3, -2, -1, 0, 1, 2, 3: |.| >= 2 four times, so (1 + 4) / (1 + 7)
    found = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert difference(2.0, found, 9).p_value == pytest.approx(5 / 8)
    # at least 2: 2 and 3, so (1 + 2) / 8; at most 2: all but 3, so (1 + 6) / 8
    assert difference(2.0, found, 9, alternative="greater").p_value == pytest.approx(3 / 8)
    assert difference(2.0, found, 9, alternative="less").p_value == pytest.approx(7 / 8)


def test_no_difference_at_all_has_p_of_1() -> None:
    values = np.random.default_rng(1).uniform(size=20)
    assert paired_difference(values, values, 100).p_value == 1.0


def test_p_is_near_that_of_a_z_test() -> None:
    # 400 differences of mean 0.1 and deviation 1: z = 2, so p = 0.0455
    values = np.random.default_rng(8).normal(size=400)
    values = (values - values.mean()) / values.std(ddof=1) + 0.1
    assert paired_difference(values, np.zeros(400), 20_000, seed=2).p_value == pytest.approx(0.0455, abs=0.006)


def test_other_prompts_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match="3 prompts are compared with 2; expected the same prompts"):
        paired_difference(np.zeros(3), np.zeros(2), 10)


# --- families and accuracies


def test_holm_multiplies_the_smallest_by_all_and_never_lowers() -> None:
    # sorted .01 .02 .03 .9: 4 x .01 = .04; 3 x .02 = .06; 2 x .03 = .06; 1 x .9 = .9
    found = holm({"d": 0.9, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == {"d": 0.9, "a": 0.04, "c": 0.06, "b": 0.06}
    assert list(found) == ["d", "a", "c", "b"]
    # 2 x .04 = .08, and .05 x 1 would be below it; never above 1
    assert holm({"a": 0.04, "b": 0.05}) == {"a": 0.08, "b": 0.08}
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_what_is_no_chance_is_an_error(wrong: float) -> None:
    with pytest.raises(EvaluationError, match=r"the p-value of gain is .*; expected 0 to 1"):
        holm({"gain": wrong})


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_one_and_all(p_values: list[float]) -> None:
    found = list(holm({str(number): p_value for number, p_value in enumerate(p_values)}).values())
    for p_value, adjusted in zip(p_values, found, strict=True):
        assert p_value <= adjusted <= min(1.0, len(p_values) * p_value) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


def test_mcnemar_counts_only_prompts_on_which_two_models_disagree() -> None:
    # 1 prompt for the first, 5 for the second: 2 x (1 + 6) / 2^6 = 14 / 64
    first = np.array([True] * 10 + [True] + [False] * 5 + [False] * 4)
    second = np.array([True] * 10 + [False] + [True] * 5 + [False] * 4)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second, found.p_value) == (1, 5, 14 / 64)
    assert mcnemar(second, first).p_value == 14 / 64


def test_mcnemar_is_1_where_nothing_speaks_for_either() -> None:
    agree = np.array([True, False, True])
    assert mcnemar(agree, agree).p_value == 1.0
    # 2 against 2: twice (1 + 4 + 6) / 16 is more than 1
    assert mcnemar(np.array([True, True, False, False]), np.array([False, False, True, True])).p_value == 1.0


def test_mcnemar_is_exact_for_many_prompts() -> None:
    # 5000 coins, 2400 heads: by the normal curve with continuity, z = 199 / sqrt(5000) = 2.814, p = 0.00489
    first, second = np.zeros(5000, dtype=bool), np.ones(5000, dtype=bool)
    first[:2400], second[:2400] = True, False
    assert mcnemar(first, second).p_value == pytest.approx(0.00489, abs=1e-5)
    with pytest.raises(EvaluationError, match="5000 outcomes are compared with 3"):
        mcnemar(first, second[:3])
