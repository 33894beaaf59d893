"""Preferences as a game: two players each name a response, and the one that is preferred wins. N games, K responses, T rounds.

The game is symmetric and its payoffs P(y > y') add up to 1, so its value is 1/2: some mixture of the responses, a *maximal
lottery* (Fishburn, 1984), is beaten by none of them. It is the Nash policy that SPPO approaches; one round of `self_play` is
the exact update that an iteration of training approximates.
"""

from collections.abc import Callable
from fractions import Fraction
from math import log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sppo.estimate import preference_matrices, sigmoid

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
WinProbabilities = Callable[[Array], Array]
"""From a policy, (K,), to what it believes P(y_k > pi) to be, (K,)."""

NOTHING = 1e-10
"""Below it a floating-point number of the simplex method may be rounding."""
CERTAIN = 1e-9
"""A lottery more exploitable than this is found again in fractions: differences that are nearly nothing bring that about."""
STEPS = 50
"""Most steps a response of the simplex method; ordinary games of 5 need 2."""
BATCH = 4096
"""Games solved side by side: of 16 responses they take 20 MB."""


def exploitability(preferences: Array, policies: Array) -> Array:
    """How much the best answer to a policy wins beyond 1/2: max_k P(y_k > pi) - 1/2; 0 for a Nash policy only.

    preferences: (..., K, K), P + P^T = 1; policies: (..., K), shares; result: (...) in [0, 1/2]."""
    return np.asarray((preferences @ policies[..., None])[..., 0].max(axis=-1) - 0.5)


def duality_gap(preferences: Array, policies: Array) -> Array:
    """max_y P(y > pi) - min_y P(pi > y), what the paper's Theorem 4.1 bounds: twice the exploitability, by symmetry."""
    return 2 * exploitability(preferences, policies)


def maximal_lotteries(preferences: Array) -> Array:
    """The mixture of responses that no response beats: max_k P(y_k > lottery) = 1/2.

    preferences: (N, K, K), P + P^T = 1; result: (N, K), shares. Fishburn (1984), Probabilistic Social Choice Based on Simple
    Voting Comparisons. With ties there may be several. Then it is the first response that loses to none, if there is one;
    otherwise the vertex of the set of maximal lotteries at which the simplex method ends under Bland's rule. Of responses
    that are the same, one stands for all. `exploitability` of the result is its certificate."""
    count = preferences.shape[1]
    payoffs = preferences - 0.5  # (N, K, K)
    unbeaten = np.asarray((payoffs >= 0).all(axis=2))  # (N, K)
    lotteries: Array = np.eye(count)[unbeaten.argmax(axis=1)]  # (N, K)
    mixed = np.flatnonzero(~unbeaten.any(axis=1))
    for start in range(0, len(mixed), BATCH):
        rows = mixed[start : start + BATCH]
        lotteries[rows] = _solved(payoffs[rows], NOTHING)
    for row in np.flatnonzero(exploitability(preferences, lotteries) > CERTAIN):
        fractions = np.vectorize(Fraction, otypes=[object])(payoffs[row : row + 1])
        lotteries[row] = _solved(fractions, 0).astype(np.float64)[0]
    return lotteries


def _solved(payoffs: npt.NDArray[Any], nothing: float) -> npt.NDArray[Any]:
    """Dantzig's linear programme of a matrix game, by the simplex method on all games at once.

    payoffs: (N, K, K), skew-symmetric, within 1/2, floating point or fractions; result: (N, K). With B = payoffs + 1 > 0:
    maximise sum(w) where B w <= 1 and w >= 0; then w / sum(w) holds every response to the value of the game. Bland's rule
    keeps it from circling, in fractions for certain. nothing: what counts as 0."""
    games, count, _ = payoffs.shape
    tableau = np.zeros((games, count + 1, 2 * count + 1), payoffs.dtype)  # (N, K + 1, 2K + 1): K rows of slack, then the costs
    tableau[:, :count, :count] = payoffs + 1
    tableau[:, :count, count : 2 * count] = np.eye(count, dtype=int)
    tableau[:, :count, -1] = 1
    tableau[:, -1, :count] = -1
    basis = np.tile(np.arange(count, 2 * count), (games, 1))  # (N, K)
    left = np.arange(games)  # games not yet at their optimum
    for _ in range(STEPS * count):
        gains = (tableau[left, -1, :-1] < -nothing).astype(bool)  # (M, 2K)
        unfinished = gains.any(axis=1)
        if not unfinished.any():
            break
        left, enters = left[unfinished], gains.argmax(axis=1)[unfinished]  # the first that gains
        _pivot(tableau, basis, left, enters, nothing)
    weights = np.zeros((games, 2 * count), payoffs.dtype)  # (N, 2K)
    np.put_along_axis(weights, basis, np.maximum(tableau[:, :count, -1], 0), axis=1)
    weights = weights[:, :count]
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _pivot(tableau: npt.NDArray[Any], basis: Indices, left: Indices, enters: Indices, nothing: float) -> None:
    """One step of each game in `left`: its variable `enters` comes into the basis."""
    each = np.arange(len(left))
    tables = tableau[left]  # (M, K + 1, 2K + 1)
    column = tables[each, :-1, enters]  # (M, K)
    allowed = (column > nothing).astype(bool)
    ratios = np.where(allowed, tables[:, :-1, -1] / np.where(allowed, column, 1), np.inf)
    least = (ratios == ratios.min(axis=1, keepdims=True)).astype(bool)  # (M, K)
    leaves = np.where(least, basis[left], 2 * basis.shape[1]).argmin(axis=1)  # (M,) of equals, the first variable
    tables[each, leaves] = tables[each, leaves] / tables[each, leaves, enters][:, None]
    factors = tables[each, :, enters]  # (M, K + 1)
    factors[each, leaves] = 0
    tables -= factors[:, :, None] * tables[each, leaves][:, None, :]
    tableau[left] = tables
    basis[left, leaves] = enters


def pairwise(preferences: Array) -> WinProbabilities:
    """P(y > pi) = sum_j pi_j P(y > y_j), as the general preference model has it. preferences: (K, K)."""
    return lambda policy: np.asarray(preferences @ policy)


def bradley_terry(logits: Array) -> WinProbabilities:
    """P(y > pi) after `sppo.estimate`'s transitive reduction: one score a response, its mean over all K. logits: (K, K)."""
    return pairwise(preference_matrices(logits[None], "bradley_terry")[0])


def bradley_terry_of_draws(logits: Array) -> WinProbabilities:
    """The same where the means run over pi_t's own draws, of which there are so many that shares are probabilities.

    logits: (K, K). s_i = sum_j pi_j (L_ij - L_ji), then P(y_i > pi) = sum_j pi_j sigmoid(s_i - s_j): the released code
    draws anew in each iteration, so its scores move with the policy."""
    margins = logits - logits.T  # (K, K)

    def win_probabilities(policy: Array) -> Array:
        scores = margins @ policy  # (K,)
        return np.asarray(sigmoid(scores[:, None] - scores[None, :]) @ policy)

    return win_probabilities


def self_play(win_probabilities: WinProbabilities, count: int, rounds: int, eta: float) -> Array:
    """Algorithm 1 without sampling or fitting: pi_{t+1}(y) ∝ pi_t(y) exp(eta P(y > pi_t)), pi_1 uniform over `count` responses.

    Result: (T, K), pi_1 .. pi_T; their mean is the paper's mixture policy. arXiv:2405.00675, section 4.1, the exact update."""
    policies = np.empty((rounds, count))
    logarithms = np.zeros(count)  # (K,)
    for place in range(rounds):
        weights = np.exp(logarithms - logarithms.max())
        policies[place] = weights / weights.sum()
        logarithms += eta * win_probabilities(policies[place])
    return policies


def best_eta(count: int, rounds: int) -> float:
    """sqrt(8 ln K / T), at which `gap_bound` is least: sqrt(2 ln K / T)."""
    return sqrt(8 * log(count) / rounds)


def gap_bound(count: int, rounds: int, eta: float) -> float:
    """What the duality gap of the mean policy of `self_play` cannot exceed: 2 (ln K / (eta T) + eta / 8).

    arXiv:2405.00675, Theorem 4.1, says O(1/sqrt(T)) for eta of order 1/sqrt(T); the constants are those of multiplicative
    weights (Freund and Schapire, 1999). With r_t(y) = P(y > pi_t) in [0, 1] and W_t = sum_y pi_1(y) exp(eta sum_{s<t} r_s(y)):

    1. W_{t+1} / W_t = E_{y~pi_t} exp(eta r_t(y)) <= exp(eta E r_t + eta^2 / 8), by Hoeffding's lemma; and E r_t, the chance
       that pi_t beats itself, is 1/2. So ln W_{T+1} <= T eta / 2 + T eta^2 / 8.
    2. W_{T+1} >= exp(eta sum_t r_t(y)) / K for each y, pi_1 being uniform.
    3. Together sum_t (r_t(y) - 1/2) <= ln K / eta + eta T / 8, the regret. P is linear in the opponent, so the left side is
       T (P(y > mean policy) - 1/2): divided by T it bounds the exploitability, and the gap is twice that.

    Step 1 and the linearity in step 3 are what `bradley_terry` does not have in the true game."""
    return 2 * (log(count) / (eta * rounds) + eta / 8)
