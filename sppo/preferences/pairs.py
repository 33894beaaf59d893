"""Numbers over pairs: order, margins, length, agreement, calibration. M pairs, J judges."""

import itertools

import numpy as np
import numpy.typing as npt

from sppo.estimate import sigmoid
from sppo.preferences.report import Agreement, Bin, Calibration, Histogram, Length, Margins, Position, Spread
from sppo.preferences.verdicts import Array, Pairs

PARTS = 25
"""Of a histogram."""
LENGTH_BINS = 8
SURENESS_BINS = 10
Prompts = npt.NDArray[np.int64]


def spread(values: Array) -> Spread:
    """Mean, median and 95th percentile of (M,), M > 0."""
    return Spread(mean=float(values.mean()), median=float(np.median(values)), p95=float(np.percentile(values, 95)))


def histogram(values: Array, low: float, high: float) -> Histogram:
    """Counts of (M,) in equal parts of a span that holds them all."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=PARTS, range=(low, high))
    return Histogram(low=low, high=high, counts=tuple(counts.tolist()))


def slope(across: Array, up: Array, prompts: Prompts) -> tuple[float, float]:
    """Least squares of `up` on `across` through the origin, and its cluster-robust standard error over prompts.

    across, up, prompts: (M,). b = sum(xy) / sum(x^2); its variance C / (C - 1) * sum_c (sum_{m in c} x (y - b x))^2 /
    (sum x^2)^2 over C prompts (Liang and Zeger, 1986): a prompt's pairs share answers, so they are not independent.
    With one prompt the error is 0: nothing is known of it."""
    squares = float(across @ across)
    found = float(across @ up) / squares
    scores = np.bincount(prompts, weights=across * (up - found * across))  # (highest prompt + 1,)
    clusters = len(np.unique(prompts))
    correction = clusters / (clusters - 1) if clusters > 1 else 0.0
    return found, float(np.sqrt(correction * (scores @ scores)) / squares)


def mean(values: Array, prompts: Prompts) -> tuple[float, float]:
    """Mean of (M,) and its cluster-robust standard error over prompts."""
    return slope(np.ones(len(values)), values, prompts)


def position(pairs: Pairs) -> Position | None:
    """What the order does; None without pairs."""
    if not len(pairs):
        return None
    shift = pairs.forward + pairs.backward  # (M,)
    flips = pairs.forward * pairs.backward > 0  # (M,)
    first = (sigmoid(pairs.forward) + sigmoid(pairs.backward)) / 2  # (M,)
    return Position(
        bias=spread(np.abs(shift)),
        first_logit=float(shift.mean() / 2),
        order_flips=float(flips.mean()),
        first_of_flips=float((shift[flips] > 0).mean()) if flips.any() else None,
        first_wins=histogram(first, 0.0, 1.0),
    )


def margins(pairs: Pairs) -> Margins | None:
    """How sure the judge is; None without pairs."""
    if not len(pairs):
        return None
    size = np.abs(pairs.margins)  # (M,)
    return Margins(size=spread(size), ties=float((size == 0).mean()), sureness=histogram(sigmoid(size), 0.5, 1.0))


def length(pairs: Pairs) -> Length | None:
    """What longer answers have to do with it; None without pairs."""
    if not len(pairs):
        return None
    uneven = pairs.longer != 0
    share = float((~uneven).mean())
    if not uneven.any():
        return Length(pairs=0, equal_length=share)
    longer, found, prompts = pairs.longer[uneven], pairs.margins[uneven], pairs.prompt[uneven]
    won = (np.sign(found * longer) + 1) / 2  # (M,) 1 if the longer wins, 1/2 for a tie
    share_won, share_error = mean(won, prompts)
    steepness, error = slope(longer / 100, found, prompts)
    parts = np.array_split(np.argsort(np.abs(longer), kind="stable"), min(LENGTH_BINS, len(longer)))
    return Length(
        pairs=len(longer),
        equal_length=share,
        longer_wins=share_won,
        longer_wins_error=share_error,
        slope_per_100_characters=steepness,
        slope_error=error,
        explained=1 - float(((found - steepness * longer / 100) ** 2).sum() / (found @ found)) if found.any() else None,
        longer_wins_by_difference=tuple(_bin(np.abs(longer)[part], won[part], prompts[part]) for part in parts),
    )


def _bin(alike: Array, values: Array, prompts: Prompts) -> Bin:
    found, error = mean(values, prompts)
    return Bin(pairs=len(values), at=float(alike.mean()), mean=found, standard_error=error)


def agreement(pairs: Pairs) -> tuple[Agreement, ...]:
    """Of each two judges of an ensemble, on the pairs that both judged."""
    found = []
    for one, other in itertools.combinations(range(len(pairs.members)), 2):
        both = np.isfinite(pairs.members[one] + pairs.members[other])
        if both.any():
            found.append(_agreement((one, other), pairs.members[one, both], pairs.members[other, both]))
    return tuple(found)


def _agreement(judges: tuple[int, int], one: Array, other: Array) -> Agreement:
    same = float((np.sign(one) == np.sign(other)).mean())
    ties = float((one == 0).mean()), float((other == 0).mean())
    # which answer of a pair comes first is arbitrary, so each judge is as often for the first as for the second
    chance = ties[0] * ties[1] + (1 - ties[0]) * (1 - ties[1]) / 2
    size = float(np.sqrt((one @ one) * (other @ other)))
    return Agreement(
        judges=judges,
        pairs=len(one),
        same_verdict=same,
        kappa=(same - chance) / (1 - chance) if chance < 1 else None,
        correlation=float(one @ other) / size if size else None,
    )


def calibration(preferences: Array, labels: Array, prompts: Prompts | None = None) -> Calibration | None:
    """Whether pairs end as often as the judge says.

    preferences: (M,), the judge's P of each pair; labels: (M,), as it truly is: a probability, 0 or 1, or nan where nobody
    knows; prompts: (M,), which pairs belong together. None without a label."""
    known = np.isfinite(labels)
    if not known.any():
        return None
    said, truth = preferences[known], labels[known]  # (M,)
    groups = np.arange(len(said)) if prompts is None else prompts[known]
    sure = np.maximum(said, 1 - said)  # (M,)
    right = np.where(said > 0.5, truth, np.where(said < 0.5, 1 - truth, 0.5))  # (M,) chance that the preferred answer wins
    place = np.minimum(((sure - 0.5) * 2 * SURENESS_BINS).astype(np.int64), SURENESS_BINS - 1)  # (M,)
    bins = tuple(_bin(sure[place == each], right[place == each], groups[place == each]) for each in np.unique(place))
    clear = truth != 0.5
    agrees = (np.sign(said - 0.5) * np.sign(truth - 0.5) + 1) / 2  # (M,)
    noise = truth * (1 - truth)  # (M,) of an outcome that is drawn by its label
    return Calibration(
        pairs=len(said),
        accuracy=float(agrees[clear].mean()) if clear.any() else None,
        error=sum(each.pairs * abs(each.mean - each.at) for each in bins) / len(said),
        brier=float(((said - truth) ** 2 + noise).mean()),
        brier_of_labels=float(noise.mean()),
        right_by_sureness=bins,
    )
