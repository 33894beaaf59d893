"""How sure a number is. Prompts are the clusters: every resample draws whole prompts, the same ones for all that is compared.

N prompts, R resamples. Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from sppo.errors import EvaluationError

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Alternative = Literal["different", "greater", "less"]

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 500
"""Resamples drawn at a time: of 20,000 prompts they are 80 MB of positions."""


@dataclass(frozen=True)
class Interval:
    """A number, and where it lies over resampled prompts."""

    value: float
    low: float
    high: float
    n: int
    """Prompts."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


@dataclass(frozen=True)
class Difference:
    """First minus second, over the same prompts."""

    interval: Interval
    p_value: float
    """Chance of a difference as large, if there were none."""


@dataclass(frozen=True)
class Disagreement:
    """Two accuracies over the same prompts."""

    only_first: int
    """Prompts that the first has right and the second wrong."""
    only_second: int
    p_value: float


def draws(prompts: int, resamples: int, seed: int) -> Iterator[Positions]:
    """Positions of the prompts in each resample, (up to 500, N) at a time; equal for equal arguments, whatever reads them."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        yield generator.integers(prompts, size=(min(BLOCK, resamples - start), prompts))  # (R, N)


def replicates(statistic: Callable[[Positions], Array], prompts: int, resamples: int, seed: int) -> Array:
    """(R,) values of a statistic that takes positions (r, N) to values (r,)."""
    return np.concatenate([statistic(drawn) for drawn in draws(prompts, resamples, seed)])


def mean_replicates(values: Array, resamples: int, seed: int) -> Array:
    """(R,) means of one value a prompt, (N,). Raises EvaluationError for no prompt, or a value that is not finite."""
    _check(values)
    return replicates(lambda drawn: values[drawn].mean(axis=1), len(values), resamples, seed)


def percentile_interval(value: float, found: Array, n: int, level: float = LEVEL) -> Interval:
    """A number with the middle `level` of its replicates."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n)


def mean_interval(values: Array, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval:
    """The mean of one value a prompt, (N,)."""
    found = mean_replicates(values, resamples, seed)
    return percentile_interval(float(values.mean()), found, len(values), level)


def ratio_interval(
    numerators: Array, denominators: Array, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """A share over rows of which prompts have unequal numbers: sum of numerators / sum of denominators, (N,) each.

    n counts the prompts. Raises EvaluationError if a prompt's denominator is negative, or all are 0."""
    _check(numerators)
    _check(denominators)
    if denominators.min() < 0 or denominators.sum() == 0:
        raise EvaluationError(
            f"the denominators of {len(denominators)} prompts are from {denominators.min():g} to {denominators.max():g}; "
            "expected counts, not all 0: leave the number out where there is nothing to count"
        )

    def ratio(drawn: Positions) -> Array:
        counted = denominators[drawn].sum(axis=1)  # (R,)
        # a resample of nothing but prompts without rows says nothing: nan, and left out below
        found: Array = np.divide(numerators[drawn].sum(axis=1), counted, out=np.full(len(drawn), np.nan), where=counted > 0)
        return found

    found = replicates(ratio, len(numerators), resamples, seed)
    value = float(numerators.sum() / denominators.sum())
    return percentile_interval(value, found[~np.isnan(found)], len(numerators), level)


def paired_difference(
    first: Array,
    second: Array,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    alternative: Alternative = "different",
) -> Difference:
    """Mean of first - second, (N,) each, of the same prompts in the same order: what both share cancels in every resample.

    Raises EvaluationError if they differ in number."""
    if len(first) != len(second):
        raise EvaluationError(
            f"{len(first)} prompts are compared with {len(second)}; expected the same prompts in the same order: "
            "keep those that both have"
        )
    found = mean_replicates(first - second, resamples, seed)
    return difference(float((first - second).mean()), found, len(first), level, alternative)


def difference(value: float, found: Array, n: int, level: float = LEVEL, alternative: Alternative = "different") -> Difference:
    """A difference with its replicates, (R,), both sides of which were drawn from the same prompts.

    p: how often the replicates, shifted to a mean of no difference, are as far out as the difference itself; the difference
    counts as one of them, so that p is never 0 (Davison and Hinkley 1997, chapter 4)."""
    shifted = found - value  # (R,)
    match alternative:
        case "different":
            as_far = np.abs(shifted) >= abs(value)
        case "greater":
            as_far = shifted >= value
        case "less":
            as_far = shifted <= value
        case _:
            assert_never(alternative)
    p_value = (1 + int(np.count_nonzero(as_far))) / (1 + len(found))
    return Difference(percentile_interval(value, found, n, level), p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being a family of m: the k-th smallest times m - k + 1, never below the one before it (Holm 1979).

    Those at most alpha are rejected with a chance of at most alpha that any of them is rejected wrongly.
    Raises EvaluationError for one outside [0, 1]."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        if not 0 <= p_value <= 1:
            raise EvaluationError(f"the p-value of {name} is {p_value}; expected 0 to 1: leave out what was not tested")
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Disagreement:
    """Whether two accuracies over the same prompts, (N,) right or wrong, differ: McNemar's exact test.

    Only prompts that one has right and the other wrong say anything; without a difference each is a fair coin, so p is twice
    the smaller tail of a binomial. Raises EvaluationError if they differ in number."""
    if len(first) != len(second):
        raise EvaluationError(
            f"{len(first)} outcomes are compared with {len(second)}; expected the same prompts in the same order: "
            "keep those that both have"
        )
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    coins, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for heads in range(fewer):
        ways = ways * (coins - heads) // (heads + 1)  # of whole numbers, so exact however many
        tail += ways
    return Disagreement(only_first, only_second, min(1.0, 2 * tail / 2**coins))


def _check(values: Array) -> None:
    if not len(values):
        raise EvaluationError("no prompt has a value; expected at least one: check what was judged, and run that again")
    if not np.isfinite(values).all():
        position = int(np.flatnonzero(~np.isfinite(values))[0])
        raise EvaluationError(
            f"the value of prompt {position} of {len(values)} is {values[position]}; expected a finite number: "
            "leave prompts without a verdict out, and count them"
        )
