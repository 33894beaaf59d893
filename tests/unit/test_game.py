"""Preferences as a game: maximal lotteries worked by hand, and SPPO played exactly against the bound of its theorem."""

import time
from pathlib import Path

import numpy as np
import pytest

from sppo import game
from sppo.estimate import sigmoid
from sppo.game import duality_gap, exploitability, maximal_lotteries, self_play

# R, P, S: P(R > S) = .9, P(S > P) = .7, P(P > R) = .6
BIASED = np.array([[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]])
LOGITS = np.log(BIASED / (1 - BIASED))
DOCS = Path(__file__).resolve().parents[2] / "docs"


def of(payoffs: dict[tuple[int, int], float], count: int) -> np.ndarray:
    """(1, K, K) preferences; what is not named is a tie."""
    preferences = np.full((1, count, count), 0.5)
    for (winner, loser), edge in payoffs.items():
        preferences[0, winner, loser] += edge
        preferences[0, loser, winner] -= edge
    return preferences


def test_each_of_three_in_a_circle_weighs_what_the_other_two_differ_by() -> None:
    # edges: scissors over paper .2, rock over scissors .4, paper over rock .1; so R : P : S = .2 : .4 : .1
    np.testing.assert_allclose(maximal_lotteries(BIASED[None]), [[2 / 7, 4 / 7, 1 / 7]], atol=1e-12)
    assert exploitability(BIASED, np.array([2 / 7, 4 / 7, 1 / 7])) == pytest.approx(0, abs=1e-12)


def test_exploitability_is_what_the_best_answer_wins_beyond_a_half() -> None:
    assert exploitability(BIASED, np.array([1.0, 0, 0])) == pytest.approx(0.1)  # paper beats rock with .6
    assert exploitability(BIASED, np.full(3, 1 / 3)) == pytest.approx(0.1)  # rock: (.5 + .4 + .9) / 3 = .6
    # P(y > pi) <= .6 and so P(pi > y) >= .4: .6 - .4
    assert duality_gap(BIASED, np.full(3, 1 / 3)) == pytest.approx(0.2)


def test_a_response_that_loses_to_none_is_the_lottery_the_first_of_several() -> None:
    np.testing.assert_array_equal(maximal_lotteries(of({(1, 0): 0.3, (2, 0): 0.2}, 3)), [[0, 1, 0]])
    np.testing.assert_array_equal(maximal_lotteries(of({}, 3)), [[1, 0, 0]])


def test_a_circle_of_four_with_ties_across_is_mixed_of_two() -> None:
    # 0 > 2 > 1 > 3 > 0 and 0 = 1, 2 = 3: (1/2, 1/2, 0, 0) ties with 2 and 3; no single response is unbeaten
    circle = of({(0, 2): 0.4, (2, 1): 0.4, (1, 3): 0.4, (3, 0): 0.4}, 4)
    lottery = maximal_lotteries(circle)
    assert sorted(lottery[0].tolist()) == [0, 0, 0.5, 0.5]
    assert exploitability(circle, lottery) == pytest.approx(0, abs=1e-12)


def test_copies_of_a_response_share_its_weight() -> None:
    copied = BIASED[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])][None]  # rock twice
    lottery = maximal_lotteries(copied)[0]
    np.testing.assert_allclose([lottery[0] + lottery[1], lottery[2], lottery[3]], [2 / 7, 4 / 7, 1 / 7], atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("noise", [None, 0.0, 1e-14, 1e-11, 1e-9, 1e-7])
def test_every_lottery_is_certified_with_and_without_ties_and_nearly_so(count: int, noise: float | None) -> None:
    draw = np.random.default_rng(count)
    logits = draw.normal(size=(500, count, count)) * 3  # (N, K, K)
    if noise is not None:
        logits = draw.integers(-1, 2, size=logits.shape) + noise * logits
    preferences = sigmoid(logits - logits.transpose(0, 2, 1))
    lotteries = maximal_lotteries(preferences)
    assert (lotteries >= 0).all()
    np.testing.assert_allclose(lotteries.sum(axis=1), 1)
    assert exploitability(preferences, lotteries).max() <= 1e-9


def test_twenty_thousand_games_of_five_take_less_than_a_second() -> None:
    logits = np.random.default_rng(0).normal(size=(20_000, 5, 5))
    preferences = sigmoid(logits - logits.transpose(0, 2, 1))
    began = time.process_time()
    maximal_lotteries(preferences)
    assert time.process_time() - began < 1  # 0.05 s on an idle core


def test_a_round_is_the_exact_update() -> None:
    policies = self_play(game.pairwise(BIASED), 3, 2, eta=2.0)
    np.testing.assert_allclose(policies[0], [1 / 3, 1 / 3, 1 / 3])
    # P(y > pi_1): R (.5 + .4 + .9)/3 = .6, P (.6 + .5 + .3)/3 = .46667, S (.1 + .7 + .5)/3 = .43333
    weights = np.exp(2 * np.array([0.6, 1.4 / 3, 1.3 / 3]))
    np.testing.assert_allclose(policies[1], weights / weights.sum())


def test_the_bound_is_least_at_its_best_eta() -> None:
    # 2 (ln 3 / (0.5 * 4) + 0.5 / 8) = 2 (.549306 + .0625)
    assert game.gap_bound(3, 4, 0.5) == pytest.approx(1.223612)
    # sqrt(8 ln 3 / 200) = .209629, and there sqrt(2 ln 3 / 200) = .104815
    assert game.best_eta(3, 200) == pytest.approx(0.209629, abs=1e-6)
    assert game.gap_bound(3, 200, game.best_eta(3, 200)) == pytest.approx(0.104815, abs=1e-6)
    assert min(game.gap_bound(3, 200, eta) for eta in (0.1, 0.2, 0.22, 0.4)) > 0.104815


@pytest.mark.parametrize("rounds", [1, 3, 10, 30, 100, 300, 1000, 3000])
@pytest.mark.parametrize("times", [0.3, 1.0, 5.0])
def test_the_gap_of_the_mean_policy_keeps_within_the_bound(rounds: int, times: float) -> None:
    draw = np.random.default_rng(rounds)
    logits = draw.normal(size=(6, 6)) * 2
    eta = times * game.best_eta(3, rounds)
    for preferences in (BIASED, sigmoid(logits - logits.T)):
        count = len(preferences)
        mean = self_play(game.pairwise(preferences), count, rounds, eta).mean(axis=0)
        assert duality_gap(preferences, mean) <= game.gap_bound(count, rounds, eta)


def after(rule: game.WinProbabilities, rounds: int) -> np.ndarray:
    return self_play(rule, 3, rounds, game.best_eta(3, rounds)).mean(axis=0)


def test_the_mean_policy_approaches_the_nash_mixture() -> None:
    nash = np.array([2, 4, 1]) / 7
    near, nearer = after(game.pairwise(BIASED), 64), after(game.pairwise(BIASED), 16_384)
    assert np.abs(nearer - nash).max() < 0.02 < 0.15 < np.abs(near - nash).max()
    assert duality_gap(BIASED, nearer) < 0.012 < 0.05 < duality_gap(BIASED, near)


def test_bradley_terry_goes_to_rock_and_keeps_the_gap_by_which_paper_beats_it() -> None:
    # scores, row means of L - L^T = 2 L: R 2/3 (ln 9 - ln 1.5) = 1.1945, P 2/3 (ln 1.5 - ln 7/3) = -.2946, S -.8999;
    # so it takes P(paper > rock) for sigmoid(-.2946 - 1.1945) = .1841, where in truth it is .6
    believed = game.bradley_terry(LOGITS)(np.array([1.0, 0, 0]))
    np.testing.assert_allclose(believed, [0.5, 0.1841, 0.1096], atol=1e-4)
    for rounds in (1024, 4096, 16_384):
        mean = after(game.bradley_terry(LOGITS), rounds)
        assert mean[0] > 0.96
        # at pure rock the gap is 2 (.6 - .5) = .2; with 4 % elsewhere it is less by at most 2 * .04 * (.6 - .3)
        assert 0.176 < duality_gap(BIASED, mean) <= 0.2
    assert game.gap_bound(3, 4096, game.best_eta(3, 4096)) < 0.024


def test_bradley_terry_of_fresh_draws_rests_where_the_logits_balance_and_not_the_preferences() -> None:
    # the circle's rule on logits: P-S ln(7/3) = .8473, R-S ln 9 = 2.1972, P-R ln 1.5 = .4055
    resting = np.array([0.8473, 2.1972, 0.4055]) / 3.45
    believed = game.bradley_terry_of_draws(LOGITS)(resting)
    np.testing.assert_allclose(believed, 0.5, atol=1e-4)
    # scissors: .1 * .2456 + .7 * .6369 + .5 * .1175 = .5291, so the gap there is .0583
    assert duality_gap(BIASED, resting) == pytest.approx(0.0583, abs=2e-4)
    for rounds in (4096, 16_384):
        gap = duality_gap(BIASED, after(game.bradley_terry_of_draws(LOGITS), rounds))
        assert gap > 0.03 > game.gap_bound(3, rounds, game.best_eta(3, rounds))


def test_the_page_tells_the_numbers_of_the_game() -> None:
    page = (DOCS / "algorithm.md").read_text(encoding="utf-8")
    rules = {
        "`pairwise`": game.pairwise(BIASED),
        "`bradley_terry`": game.bradley_terry(LOGITS),
        "`bradley_terry`, of draws": game.bradley_terry_of_draws(LOGITS),
    }
    for name, rule in rules.items():
        mean = after(rule, 16_384)
        shown = [f"{share:.3f}".removeprefix("0") for share in [*mean, duality_gap(BIASED, mean)]]
        assert f"| {name} | {' '.join(shown[:3])} | {shown[3]}" in page
