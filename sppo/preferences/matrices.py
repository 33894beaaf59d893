"""Numbers over whole preference matrices: cycles, Condorcet winners, the game. N prompts, K responses."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sppo.estimate import sigmoid
from sppo.game import exploitability, maximal_lotteries
from sppo.preferences.pairs import spread
from sppo.preferences.report import Game, Transitivity
from sppo.preferences.verdicts import Array, Verdicts

PART = 1e-9
"""A response with less of a lottery has no part in it."""


def comparable(groups: Sequence[Verdicts]) -> list[Verdicts]:
    """Of each group the prompts with every verdict and at least two different texts; empty groups are left out."""
    chosen = [group.taken(group.whole & group.told_apart) for group in groups]
    return [group for group in chosen if len(group.logits)]


def transitivity(groups: Sequence[Verdicts]) -> Transitivity | None:
    """Of `comparable` prompts; None without any."""
    prompts = sum(len(group.logits) for group in groups)
    if not prompts:
        return None
    triples, cyclic, without_winner, without_unbeaten = np.sum([_cycles(group) for group in groups], axis=0).tolist()
    return Transitivity(
        prompts=prompts,
        triples=triples,
        cyclic_triples=cyclic / triples if triples else None,
        no_condorcet_winner=without_winner / prompts,
        condorcet_cycle=without_unbeaten / prompts,
    )


def cycles(group: Verdicts) -> tuple[Array, Array]:
    """(N,) each: triples of a prompt's responses without a tie among them, and those of them that go round in a circle."""
    signs = _signs(group)  # (N, K, K)
    triples, cyclic = np.zeros(len(signs)), np.zeros(len(signs))  # (N,)
    for i, j, k in itertools.combinations(range(signs.shape[1]), 3):
        one, two, three = signs[:, i, j], signs[:, j, k], signs[:, k, i]  # (N,)
        triples += one * two * three != 0
        cyclic += (one == two) & (two == three) & (one != 0)
    return triples, cyclic


def _cycles(group: Verdicts) -> tuple[int, int, int, int]:
    """Triples, cyclic ones, prompts without a response that beats all others, and without one that loses to none."""
    signs = _signs(group)  # (N, K, K)
    triples, cyclic = cycles(group)
    not_winners = np.asarray(((signs <= 0) & ~group.same).any(axis=2))  # (N, K)
    beaten = np.asarray((signs < 0).any(axis=2))  # (N, K)
    return int(triples.sum()), int(cyclic.sum()), int(not_winners.all(axis=1).sum()), int(beaten.all(axis=1).sum())


def _signs(group: Verdicts) -> npt.NDArray[np.int8]:
    """(N, K, K) 1 where the first of two different texts is preferred, -1 where the second is, else 0."""
    return np.where(group.same, 0, np.sign(group.margins)).astype(np.int8)


def game(groups: Sequence[Verdicts]) -> Game | None:
    """Of `comparable` prompts; None without any."""
    if not groups:
        return None
    solved = [_solved(group) for group in groups]
    gains, wins, outside, certificates = (np.concatenate([each[place] for each in solved]) for place in range(4))  # (N,) each
    sizes = np.concatenate([each[4] for each in solved]).astype(np.int64)  # (N,)
    return Game(
        prompts=len(gains),
        exploitability=spread(gains),
        lottery_wins=float(wins.mean()),
        mixed=float((sizes > 1).mean()),
        support=tuple(np.bincount(sizes)[1:].tolist()),
        best_outside=float(outside.mean()),
        certificate=max(0.0, float(certificates.max())),
    )


def _solved(group: Verdicts) -> tuple[Array, Array, Array, Array, Array]:
    """(N,) each: exploitability of pi_t, P(lottery > pi_t), whether the best has no part in it, certificate, support."""
    preferences = sigmoid(np.where(group.same, 0, group.margins))  # (N, K, K)
    lotteries = maximal_lotteries(preferences)  # (N, K)
    rates = preferences.mean(axis=2)  # (N, K) P(y_k > pi_t), the self-match 1/2
    # a copy of the best may stand for it
    best = group.same[np.arange(len(rates)), rates.argmax(axis=1)]  # (N, K)
    outside = (lotteries * best).sum(axis=1) < PART  # (N,)
    wins = (lotteries * rates).sum(axis=1)  # (N,)
    support = (lotteries > PART).sum(axis=1)  # (N,)
    gains = rates.max(axis=1) - 0.5  # (N,)
    return gains, wins, outside.astype(np.float64), exploitability(preferences, lotteries), support.astype(np.float64)
