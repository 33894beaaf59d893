"""What is measured of an iteration: each number on answers and duels small enough to count by hand."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from sppo.checks import Material, check_report, measure, policy_measures, read_answers, to_json
from sppo.checks.duels import DuelMeasures, measure_duel
from sppo.checks.matrices import matrix_ratios
from sppo.checks.report import NUMBERS, CheckReport
from sppo.checks.resampling import Ratio, Resampled, resampled, resampled_quantiles
from sppo.errors import EstimateError, EvaluationError
from sppo.preferences import read_verdicts
from sppo.recipe.evaluation import Checks
from sppo.records import Comparison, Duel, Response, to_table
from sppo.statistics import mean_interval

NAN = float("nan")
CHECKS = Checks(distinct_words=3)


def samples(texts: dict[str, Sequence[str]], cut: Sequence[str] = ()) -> pa.Table:
    """`Response` rows; a token a word. cut: texts that reached the limit."""
    return to_table(
        Response,
        [
            Response(name, k, list(range(len(text.split()))), text, "length" if text in cut else "stop", [], 1)
            for name, each in texts.items()
            for k, text in enumerate(each)
        ],
    )


def duel(margins: dict[str, Sequence[Sequence[float]]]) -> pa.Table:
    """`Duel` rows with L(new_i, other_j) = m_ij and L(other_j, new_i) = -m_ij, so P(new_i > other_j) = sigmoid(m_ij)."""
    rows = []
    for name, matrix in margins.items():
        found = np.array(matrix, np.float64)  # (n, m)
        rows.append(Duel(name, *found.shape, found.ravel().tolist(), (-found.T).ravel().tolist()))
    return to_table(Duel, rows)


def of_duel(
    margins: dict[str, Sequence[Sequence[float]]],
    new: dict[str, Sequence[str]],
    other: dict[str, Sequence[str]],
    matched_length: float = 1.25,
) -> DuelMeasures:
    names = list(new)
    mine, theirs = read_answers(samples(new), names), read_answers(samples(other), names)
    return measure_duel(duel(margins), names, mine, theirs, matched_length, 200, 0)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_a_ratio_of_sums_has_the_interval_of_the_mean_where_each_prompt_has_one_row() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = resampled({"mean": Ratio(values, np.ones(40))}, 300, 5)["mean"]
    expected = mean_interval(values, 300, 5)
    shown = found.interval()
    assert (shown.value, shown.low, shown.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert shown.n == 40


def test_a_prompt_without_rows_counts_for_nothing() -> None:
    # (1 + 5) / (2 + 2), of two prompts
    found = resampled(
        {"share": Ratio(np.array([1.0, 0, 5]), np.array([2.0, 0, 2])), "none": Ratio(np.zeros(3), np.zeros(3))}, 50, 0
    )
    assert list(found) == ["share"]
    assert (found["share"].value, found["share"].n) == (1.5, 2)


def test_a_difference_of_equal_numbers_is_0_in_every_resample() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = resampled({"one": Ratio(values, np.ones(30)), "other": Ratio(values + 1, np.ones(30))}, 100, 0)
    gap = found["other"].minus(found["one"])
    assert gap.replicates == pytest.approx(np.ones(100))
    assert gap.p_above(0.5) == pytest.approx(1 / 101)  # no resample has a gap as far from 1 as 1/2 is
    assert gap.p_above(1.5) == 1


def test_growth_is_relative_and_from_nothing_says_nothing() -> None:
    found = resampled({"old": Ratio(np.full(9, 4.0), np.ones(9)), "new": Ratio(np.full(9, 5.0), np.ones(9))}, 20, 0)
    assert found["new"].growth_from(found["old"]).value == 0.25
    assert Resampled(1.0, np.ones(20), 9).growth_from(Resampled(0.0, np.zeros(20), 9)).p_above(0.1) == 1


def test_quantiles_are_values_that_some_answer_has() -> None:
    values = np.array([10.0, 40, 20, 30])
    median, p95 = resampled_quantiles(values, np.array([0, 0, 1, 1]), 2, (0.5, 0.95), 400, 0)
    assert (median.value, p95.value, median.n) == (20, 40, 2)
    # the two prompts as they are: 20; the first twice, 10 10 40 40: 10; the second twice: 20
    assert set(median.replicates.tolist()) == {10, 20}
    assert set(p95.replicates.tolist()) == {30, 40}


def test_an_answer_is_measured_in_characters_tokens_and_traits() -> None:
    texts = {"p": ["I cannot say", "a b c d a b c d"], "q": ["", "one two three"]}
    found = policy_measures(read_answers(samples(texts, cut=["one two three"]), ["p", "q"]), CHECKS, 50, 0)
    assert set(found) <= NUMBERS.keys()
    values = {name: number.value for name, number in found.items()}
    # 12, 15, 0 and 13 characters; 3, 8, 0 and 3 words
    assert (values["characters"], values["characters_median"], values["characters_p95"]) == (10, 12, 15)
    assert (values["tokens"], values["tokens_median"], values["tokens_p95"]) == (3.5, 3, 8)
    assert (values["cut"], values["empty"], values["refusals"], values["loops"]) == (0.25, 0.25, 0.25, 0)
    assert values["repetition"] == pytest.approx(0.2 / 4)
    # first three words of those that have them: i cannot say, a b c, one two three: 9 of 9
    assert (values["distinct_1"], values["distinct_2"]) == (1, 1)
    assert all(number.n == 2 for number in found.values())


def test_policies_that_answered_other_prompts_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match=r"2 of 2 held-out prompts .* the first b; expected the same prompts"):
        read_answers(samples({"a": ["x"], "c": ["y"]}), ["a", "b"])


def test_a_win_rate_is_the_mean_over_prompts() -> None:
    found = of_duel(
        {"p": [[logit(0.9), logit(0.7)]], "q": [[logit(0.2), logit(0.2)]]},
        {"p": ["aaaa"], "q": ["aaaa"]},
        {"p": ["bbbb", "cccc"], "q": ["bbbb", "cccc"]},
    )
    assert found.win_rate.value == pytest.approx((0.8 + 0.2) / 2, abs=1e-6)
    assert found.matched == 1
    assert found.equal_length is not None
    assert found.equal_length.value == pytest.approx((0.9 + 0.7 + 0.2 + 0.2) / 4, abs=1e-6)


def test_at_equal_length_each_side_counts_half() -> None:
    # factor 1.25: of 99 characters, 110 and 90 are as unequal, log(111/100) and log(100/91); 200 is out of reach
    new = {"p": ["a" * 110, "a" * 110, "a" * 110, "a" * 90, "a" * 200]}
    wins = [0.9, 0.8, 0.7, 0.4, 1 - 1e-9]
    found = of_duel({"p": [[logit(chance)] for chance in wins]}, new, {"p": ["b" * 99]})
    assert found.matched == pytest.approx(4 / 5)
    assert found.equal_length is not None
    # (mean(.9, .8, .7) + .4) / 2 = .6
    assert found.equal_length.value == pytest.approx(0.6, abs=1e-6)
    assert found.win_rate.value == pytest.approx((0.9 + 0.8 + 0.7 + 0.4 + 1) / 5, abs=1e-6)


def test_answers_of_one_text_are_even_and_count_by_their_share() -> None:
    # one text twice of four pairs: 2/4 * 1/2 + 2/4 * (.9 + .5) / 2 = .6
    new = {"p": ["same", "a" * 110], "q": ["same", "a" * 90]}
    other = {"p": ["same", "b" * 99], "q": ["same", "b" * 99]}
    nothing = logit(0.5)
    margins = {"p": [[nothing, NAN], [NAN, logit(0.9)]], "q": [[nothing, NAN], [NAN, logit(0.5)]]}
    found = of_duel(margins, new, other)
    assert found.equal_length is not None
    assert found.equal_length.value == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("steepness", [0.5, 8.0, 1000.0])
def test_a_judge_of_length_alone_wins_nothing_at_equal_length(steepness: float) -> None:
    draw = np.random.default_rng(3)
    names = [f"p{number}" for number in range(150)]
    new = {name: ["a" * int(size) for size in draw.integers(60, 160, 3)] for name in names}  # longer by a third
    other = {name: ["b" * int(size) for size in draw.integers(40, 130, 3)] for name in names}
    margins = {
        name: [[float(np.clip(steepness * math.log(len(one) / len(two)), -30, 30)) for two in other[name]] for one in new[name]]
        for name in names
    }
    found = of_duel(margins, new, other)
    assert found.equal_length is not None
    assert found.win_rate.interval().low > 0.5
    assert found.equal_length.value == pytest.approx(0.5, abs=0.01)


def test_without_longer_and_shorter_answers_there_is_no_win_rate_at_equal_length() -> None:
    found = of_duel({"p": [[1.0]]}, {"p": ["a" * 11]}, {"p": ["b" * 10]})
    assert (found.equal_length, found.matched) == (None, 1)


def test_a_pair_without_a_verdict_is_in_no_number() -> None:
    found = of_duel(
        {"p": [[logit(0.9), NAN]], "q": [[NAN, NAN]]},
        {"p": ["aaaa"], "q": ["aaaa"]},
        {"p": ["bbbb", "cccc"], "q": ["bbbb", "cccc"]},
    )
    assert (found.win_rate.value, found.win_rate.n) == (pytest.approx(0.9, abs=1e-6), 1)
    with pytest.raises(EvaluationError, match="none of 1 held-out prompts"):
        of_duel({"p": [[NAN]]}, {"p": ["a"]}, {"p": ["b"]})
    with pytest.raises(EstimateError, match="infinite"):
        of_duel({"p": [[math.inf]]}, {"p": ["a"]}, {"p": ["b"]})


def test_a_duel_of_other_answers_than_the_samples_is_refused() -> None:
    with pytest.raises(EvaluationError, match="compares 1 x 2 answers to held-out prompt p"):
        of_duel({"p": [[1.0, 1.0]]}, {"p": ["a"]}, {"p": ["b"]})


def test_near_ties_and_circles_of_the_matrices() -> None:
    # p: 0 > 1 > 2 > 0 clearly; q: 0 = 1 nearly, both over 2; r: one text three times
    circle, line = np.zeros((3, 3)), np.zeros((3, 3))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        circle[i, j], circle[j, i] = 2, -2
    for i, j, margin in ((0, 1, 0.1), (0, 2, 3), (1, 2, 3)):
        line[i, j], line[j, i] = margin, -margin
    rows = [Comparison(name, 3, matrix.ravel().tolist()) for name, matrix in (("p", circle), ("q", line), ("r", 0 * line))]
    groups = read_verdicts(to_table(Comparison, rows), {"p": list("abc"), "q": list("abc"), "r": ["x"] * 3})
    found = resampled(matrix_ratios(groups, near_tie=0.05), 100, 0)
    # sigmoid(.1) = .525: one of six pairs is a near tie; one of two triples goes round
    assert (found["near_ties"].value, found["near_ties"].n) == (pytest.approx(1 / 6), 2)
    assert (found["cyclic_triples"].value, found["cyclic_triples"].n) == (0.5, 2)


def material(duels: int = 2) -> Material:
    """pi_0 .. pi_2 on two prompts, under a judge and an independent one."""
    texts = {"q": ["one two three", "four"], "p": ["five six seven", "eight"]}
    policies = [samples(texts), samples(texts), samples({"p": texts["p"], "q": texts["q"]})]
    found = duel({"q": [[0.0, 1.0], [1.0, 0.0]], "p": [[0.0, 2.0], [2.0, 0.0]]})
    return Material(policies, {"judge": [found] * duels, "other": [found] * 2})


def test_an_iteration_is_measured_against_every_policy_before_it() -> None:
    measures = measure(material(), CHECKS, 100, 0)
    assert (measures.iteration, len(measures.policies)) == (2, 3)
    assert [(judge.judge, judge.independent, len(judge.against)) for judge in measures.judges] == [
        ("judge", False, 2),
        ("other", True, 2),
    ]
    # equal numbers of the same prompts are equal in every resample, whatever the order of the rows
    first, last = measures.policies[0]["characters"], measures.policies[2]["characters"]
    assert np.array_equal(first.replicates, last.replicates)


def test_a_judge_with_too_few_duels_is_refused() -> None:
    with pytest.raises(EvaluationError, match="judge judge has 1 duels of pi_2; expected 2"):
        measure(material(duels=1), CHECKS, 100, 0)


def test_the_report_says_what_was_measured_and_reads_back() -> None:
    report = check_report(measure(material(), CHECKS, 100, 0))
    again = CheckReport.model_validate_json(to_json(report))
    assert again == report
    plain = json.loads(to_json(report))
    # (.5 + .731 + .731 + .5) / 4 = .616 and (.5 + .881 + .881 + .5) / 4 = .690, of two prompts
    rate = plain["judges"][0]["against"][1]["win_rate"]
    assert rate["value"] == pytest.approx((0.615529 + 0.690399) / 2, abs=1e-6)
    assert rate["n"] == 2
    assert (plain["matrices"], plain["divergences"]) == ({}, [])
