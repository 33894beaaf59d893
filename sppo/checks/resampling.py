"""Numbers that are sums over prompts divided by sums over prompts, resampled all at once. N prompts, R resamples.

Means, shares and win rates are such numbers. All are read from the same resampled prompts, so what is computed of two of them,
prompt by prompt the same, is paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sppo.statistics import LEVEL, Interval, Positions, difference, draws, percentile_interval, replicates

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """sum of numerators / sum of denominators."""

    numerators: Array
    """(N,), 0 for a prompt that has no part in it."""
    denominators: Array
    """(N,), at least 0."""


@dataclass(frozen=True)
class Resampled:
    """A number, and what it is over resampled prompts."""

    value: float
    replicates: Array
    """(R,), nan for a resample in which there was nothing to count."""
    n: int
    """Prompts that have a part in it."""

    def interval(self) -> Interval:
        """The number with the middle 95 % of its replicates."""
        return percentile_interval(self.value, self.replicates[np.isfinite(self.replicates)], self.n, LEVEL)

    def standard_error(self) -> float:
        """Standard deviation of the replicates."""
        return float(np.nanstd(self.replicates, ddof=1))

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference, over the same resampled prompts."""
        return Resampled(self.value - other.value, self.replicates - other.replicates, min(self.n, other.n))

    def growth_from(self, other: "Resampled") -> "Resampled":
        """self / other - 1: 0.15 is 15 % more."""
        with np.errstate(divide="ignore", invalid="ignore"):  # nothing grown from nothing says nothing: nan or inf, left out
            grown = Resampled(
                float(np.float64(self.value) / other.value - 1), self.replicates / other.replicates - 1, min(self.n, other.n)
            )
        return grown

    def p_above(self, bound: float) -> float:
        """p of the claim that the number is above a bound: how often chance alone takes one that is not as far above it.

        By the replicates, shifted by as much as the number is above it (`sppo.statistics.difference`); 1 if nothing is
        known."""
        known = self.replicates[np.isfinite(self.replicates)]
        if not np.isfinite(self.value) or not len(known):
            return 1.0
        return difference(self.value - bound, known - bound, self.n, alternative="greater").p_value


def per_prompt(values: Array, owners: npt.NDArray[np.int64], prompts: int) -> Ratio:
    """The mean over rows of which a prompt may have several: values (M,), owners (M,) the prompt of each; nan rows left out."""
    known = np.isfinite(values)
    return Ratio(sums(values[known], owners[known], prompts), sums(np.ones(int(known.sum())), owners[known], prompts))


def sums(values: Array, owners: npt.NDArray[np.int64], prompts: int) -> Array:
    """(N,) each prompt's sum of rows."""
    return np.asarray(np.bincount(owners, weights=values, minlength=prompts), np.float64)


def resampled(ratios: Mapping[str, Ratio], resamples: int, seed: int) -> dict[str, Resampled]:
    """Each ratio over the same resampled prompts, by name; one without anything to count is left out."""
    counted = {name: ratio for name, ratio in ratios.items() if ratio.denominators.any()}
    if not counted:
        return {}
    prompts = len(next(iter(counted.values())).denominators)
    columns = np.stack([column for ratio in counted.values() for column in (ratio.numerators, ratio.denominators)], axis=1)
    sums = replicates(lambda drawn: times_drawn(drawn) @ columns, prompts, resamples, seed)  # (R, 2 * ratios)
    found = {}
    for place, (name, ratio) in enumerate(counted.items()):
        over, under = sums[:, 2 * place], sums[:, 2 * place + 1]  # (R,)
        values = np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)  # (R,)
        value = float(ratio.numerators.sum() / ratio.denominators.sum())
        found[name] = Resampled(value, values, int(np.count_nonzero(ratio.denominators)))
    return found


def resampled_quantiles(
    values: Array, owners: npt.NDArray[np.int64], prompts: int, shares: tuple[float, ...], resamples: int, seed: int
) -> list[Resampled]:
    """For each share the smallest value that at least this share of the rows does not exceed, over resampled prompts.

    values: (M,), owners: (M,) the prompt of each."""
    order = np.argsort(values, kind="stable")
    ordered, owned = values[order], owners[order]
    found: list[list[Array]] = [[] for _ in shares]
    for drawn in draws(prompts, resamples, seed):
        below = np.cumsum(times_drawn(drawn)[:, owned], axis=1)  # (r, M) rows up to here
        for share, parts in zip(shares, found, strict=True):
            reached = below >= share * below[:, -1:] - 1e-9
            parts.append(ordered[reached.argmax(axis=1)])
    n = len(np.unique(owners))
    whole = np.quantile(values, shares, method="inverted_cdf").tolist()
    return [Resampled(float(value), np.concatenate(parts), n) for value, parts in zip(whole, found, strict=True)]


def times_drawn(drawn: Positions) -> Array:
    """(r, N) how often each prompt stands in each resample, of positions (r, N)."""
    rows, prompts = drawn.shape
    flat = (drawn + np.arange(rows)[:, None] * prompts).ravel()
    return np.bincount(flat, minlength=rows * prompts).reshape(rows, prompts).astype(np.float64)
