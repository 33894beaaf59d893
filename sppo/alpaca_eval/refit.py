"""The length-controlled fit in many resamples at once, so that its interval knows that the weights are fitted. R resamples.

The published standard error takes the fitted weights as given, and is about half the real one. Here each resample draws
instructions, with the baselines' rows on them, takes the standard deviation of its lengths and fits a, b and c anew. C stays as
chosen on all rows: choosing it anew, with an instruction's draws in one fold, moved the standard errors of three models by at
most 1.3 %, and takes 50 times as long.

The fit is a proximal Newton method (Lee, Sun and Saunders 2014) on three weights: the log loss by its second-order form,
|weight| as it is, steps halved that do not lower the objective. It ends at the optimum, liblinear within its tolerance of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sppo.alpaca_eval.length_control import GAMED_WEIGHT, Design
from sppo.errors import EvaluationError
from sppo.estimate import sigmoid
from sppo.statistics import Positions, replicates

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

STEPS = 100
TOLERANCE = 1e-6
"""Of the last step of a weight; Newton's error after it is about its square."""
AT_ONCE = 32
"""Resamples that are fitted together: their rows stay in the processor's cache."""


def win_rate_replicates(fitted: Design, inverse_penalty: float, resamples: int, seed: int) -> Array:
    """(R,) length-controlled rates in percent, each with its own fit at this C, over the draws of `sppo.statistics`."""
    start = _Weighted.of_all(fitted, inverse_penalty).solved(np.zeros((1, 3)))  # (1, 3)

    def rates(drawn: Positions) -> Array:
        parts = [drawn[first : first + AT_ONCE] for first in range(0, len(drawn), AT_ONCE)]
        return np.concatenate([_rates(fitted, inverse_penalty, part, start) for part in parts])

    return replicates(rates, len(fitted.preferences), resamples, seed)


def exact_fit(fitted: Design, inverse_penalty: float) -> Array:
    """(3,) a, b and c at the optimum for all rows."""
    found: Array = _Weighted.of_all(fitted, inverse_penalty).solved(np.zeros((1, 3)))[0]
    return found


def _rates(fitted: Design, inverse_penalty: float, drawn: Positions, start: Array) -> Array:
    """(r,) rates of some resamples, positions (r, N)."""
    times = _times_drawn(drawn)  # (r, N)
    weights = _Weighted.of(fitted, inverse_penalty, times).solved(np.repeat(start, len(drawn), axis=0))  # (r, 3)
    predicted = sigmoid(np.outer(weights[:, 1], fitted.difficulties) + weights[:, 2:])  # (r, N)
    rates: Array = 100 * (times * predicted).sum(axis=1) / times.sum(axis=1)
    return rates


def _times_drawn(drawn: Positions) -> Array:
    """How often each of N instructions is in each resample, (r, N)."""
    resamples, prompts = drawn.shape
    flat = drawn + prompts * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=drawn.size).reshape(resamples, prompts).astype(np.float64)


class _Weighted:
    """The objective of r weighted copies of one design; J fitted rows: the gamed ones, then the judged."""

    def __init__(self, lengths: Array, difficulties: Array, models: Array, wanted: Array, weights: Array, free: Flags) -> None:
        self.lengths = lengths
        """(r, J) tanh of the length differences in each copy's own standard deviations."""
        self.difficulties = difficulties
        """(J,)"""
        self.models = models
        """(J,) 0 of a gamed row, else 1."""
        self.wanted = wanted
        """(J,) preferences in [0, 1]."""
        self.weights = weights
        """(r, J) C times the weight of a row."""
        self.free = free
        """(3,) whether a, b and c are fitted; one that is not stays 0."""

    @classmethod
    def of_all(cls, fitted: Design, inverse_penalty: float) -> "_Weighted":
        """One copy, each row once."""
        return cls.of(fitted, inverse_penalty, np.ones((1, len(fitted.preferences))))

    @classmethod
    def of(cls, fitted: Design, inverse_penalty: float, times: Array) -> "_Weighted":
        """Copies in which instructions count so many times, (r, N)."""
        judged = ~np.isnan(fitted.preferences)
        own = _in_deviations(fitted.length_differences, times)[:, judged]  # (r, J')
        gamed = np.broadcast_to(np.tanh(fitted.gamed_lengths), (len(times), len(fitted.gamed_lengths)))  # (r, G)
        # a gamed row is drawn with its instruction; one whose instruction was not asked is always there
        drawn = np.where(fitted.gamed_places >= 0, times[:, fitted.gamed_places], 1.0) if gamed.size else gamed  # (r, G)
        weights = np.concatenate([GAMED_WEIGHT * drawn, times[:, judged]], axis=1)
        if (times[:, judged].sum(axis=1) == 0).any():
            raise EvaluationError(
                f"{int(judged.sum())} of {len(judged)} rows were judged, and a resample has none of them; "
                "expected more: judge the other rows before asking how sure the rate is"
            )
        return cls(
            np.concatenate([gamed, own], axis=1),
            np.concatenate([fitted.gamed_difficulties, fitted.difficulties[judged]]),
            np.concatenate([np.zeros(gamed.shape[1]), np.ones(own.shape[1])]),
            np.concatenate([fitted.gamed_preferences, fitted.preferences[judged]]),
            inverse_penalty * weights,
            np.array([True, fitted.kind == "length_controlled_v1", True]),
        )

    def solved(self, start: Array) -> Array:
        """(r, 3) weights of least objective. Raises EvaluationError if a copy does not settle."""
        found, copies, part = start.copy(), np.arange(len(start)), self
        now = part._at(found)
        for _ in range(STEPS):
            step = _penalised_minimum(found[copies], now.gradient, now.curvature, self.free)  # (r', 3)
            now, step = part._lowered(found[copies], step, now)
            found[copies] += step
            moving = np.abs(step).max(axis=1) > TOLERANCE  # (r',)
            if not moving.any():
                return found
            if not moving.all():
                copies, part, now = copies[moving], part._of(moving), now.of(moving)
        raise EvaluationError(
            f"the length-controlled fit of {len(copies)} resamples has not settled after {STEPS} steps, the last of "
            f"{np.abs(step).max():.2g}; expected under {TOLERANCE:g}: check the preferences and the lengths of the answers"
        )

    def _lowered(self, found: Array, step: Array, before: "_Place") -> tuple["_Place", Array]:
        """Where the step leads, and the step, halved until it does not raise the objective."""
        shares = np.ones((len(found), 1))
        for _ in range(40):
            now = self._at(found + shares * step)
            # a share of what rounding does to a sum is no rise
            worse = now.objective > before.objective * (1 + 1e-12)  # (r,)
            if not worse.any():
                break
            shares[worse] /= 2
        return now, shares * step

    def _of(self, kept: Flags) -> "_Weighted":
        return _Weighted(self.lengths[kept], self.difficulties, self.models, self.wanted, self.weights[kept], self.free)

    def _at(self, found: Array) -> "_Place":
        """The objective |a| + |b| + |c| + C times the log loss, and the slopes of the latter."""
        logits = self.lengths * found[:, :1]  # (r, J)
        logits += np.outer(found[:, 1], self.difficulties)
        logits += np.outer(found[:, 2], self.models)
        small = np.exp(-np.abs(logits))  # (r, J), in (0, 1]: never too large for a float
        losses = np.log1p(small) + np.maximum(logits, 0) - self.wanted * logits
        objective = np.abs(found).sum(axis=1) + np.einsum("rj,rj->r", self.weights, losses)
        chance = np.where(logits >= 0, 1.0, small) / (1 + small)
        excess = self.weights * (chance - self.wanted)
        bend = self.weights * chance * (1 - chance)
        leaning = bend * self.lengths
        fixed = np.column_stack([self.difficulties, self.models])  # (J, 2)
        squares = np.column_stack([self.difficulties**2, self.difficulties * self.models, self.models])  # (J, 3)
        gradient = np.column_stack([np.einsum("rj,rj->r", excess, self.lengths), excess @ fixed])
        bends = np.column_stack([np.einsum("rj,rj->r", leaning, self.lengths), leaning @ fixed, bend @ squares])  # (r, 6)
        return _Place(objective, gradient, bends[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3))


@dataclass(frozen=True)
class _Place:
    """What r objectives are at r places."""

    objective: Array
    """(r,)"""
    gradient: Array
    """(r, 3) of C times the log loss."""
    curvature: Array
    """(r, 3, 3) of the same."""

    def of(self, kept: Flags) -> "_Place":
        return _Place(self.objective[kept], self.gradient[kept], self.curvature[kept])


def _in_deviations(differences: Array, times: Array) -> Array:
    """tanh(d / sd) of each resample's own sd, (r, N); zeros where nothing varies."""
    drawn = times.sum(axis=1, keepdims=True)  # (r, 1)
    centred = differences - (times @ differences)[:, None] / drawn  # (r, N)
    deviation = np.sqrt((times * centred**2).sum(axis=1, keepdims=True) / (drawn - 1))  # (r, 1)
    found: Array = np.divide(differences, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return np.tanh(found)


def _penalised_minimum(found: Array, gradient: Array, curvature: Array, free: Flags) -> Array:
    """(r, 3) step s of least gradient s + s curvature s / 2 + |found + s|, one weight after another until none moves."""
    step = np.zeros_like(found)
    for _ in range(1000):
        most = 0.0
        for place in np.flatnonzero(free).tolist():
            slope = gradient[:, place] + (curvature[:, place] * step).sum(axis=1)  # (r,)
            bend = curvature[:, place, place]
            here = found[:, place] + step[:, place]
            # a weight that nothing depends on goes to 0
            aim = here - np.divide(slope, bend, out=here.copy(), where=bend > 0)
            room = np.divide(1.0, bend, out=np.full_like(bend, np.inf), where=bend > 0)
            moved = np.sign(aim) * np.maximum(np.abs(aim) - room, 0) - here
            step[:, place] += moved
            most = max(most, float(np.abs(moved).max()))
        if most < TOLERANCE / 100:
            break
    return step
