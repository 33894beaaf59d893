"""Accuracy, macro F1, Pearson's correlation and mean squared error of N answers, for many resamples of the rows at once.

A statistic takes positions of rows, (R, N), to R values; the score itself is the one of every row once. All are shares or in
the targets' own units, never percent.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sppo.fingerprint import seed_of
from sppo.portuguese.specification import LeaderboardTask, Metric
from sppo.portuguese.tasks import TASKS
from sppo.statistics import Interval, percentile_interval, replicates

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Statistic = Callable[[Positions], Array]


def statistic(metric: Metric, targets: Sequence[str], answers: Sequence[str]) -> Statistic:
    """A metric of these answers. Numbers may have a decimal comma."""
    if metric in ("acc", "f1_macro"):
        labels = {label: number for number, label in enumerate(dict.fromkeys((*targets, *answers)))}
        right = np.array([labels[label] for label in targets])  # (N,)
        given = np.array([labels[label] for label in answers])  # (N,)
        return functools.partial(accuracy if metric == "acc" else macro_f1, right, given)
    truth = np.array([_number(text) for text in targets])  # (N,)
    said = np.array([_number(text) for text in answers])  # (N,)
    return functools.partial(pearson if metric == "pearson" else mean_squared_error, truth, said)


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def accuracy(right: Positions, given: Positions, rows: Positions) -> Array:
    """Share of the rows answered right."""
    same: Array = (right == given).astype(np.float64)  # (N,)
    found: Array = same[rows].mean(axis=1)  # (R,)
    return found


def macro_f1(right: Positions, given: Positions, rows: Positions) -> Array:
    """Plain mean over the labels that are right somewhere in a resample of 2 hits / (times right + times given)."""
    total, labels = np.zeros(len(rows)), np.zeros(len(rows))  # (R,) each
    for label in np.unique(right):
        hits = ((right == label) & (given == label))[rows].sum(axis=1)  # (R,)
        times_right = (right == label)[rows].sum(axis=1)  # (R,)
        times_given = (given == label)[rows].sum(axis=1)  # (R,)
        total += np.where(times_right > 0, 2 * hits / np.maximum(times_right + times_given, 1), 0)
        labels += times_right > 0
    return total / labels


def pearson(truth: Array, said: Array, rows: Positions) -> Array:
    """Absolute value of the correlation; 0 where either side is constant."""
    x = truth[rows] - truth[rows].mean(axis=1, keepdims=True)  # (R, N)
    y = said[rows] - said[rows].mean(axis=1, keepdims=True)  # (R, N)
    varies = (np.ptp(truth[rows], axis=1) > 0) & (np.ptp(said[rows], axis=1) > 0)  # (R,): a mean is off by a rounding
    spread = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))  # (R,)
    found: Array = np.where(varies, np.abs((x * y).sum(axis=1)) / np.where(varies, spread, 1), 0)  # (R,)
    return found


def mean_squared_error(truth: Array, said: Array, rows: Positions) -> Array:
    """Mean of the squared differences."""
    found: Array = ((truth - said) ** 2)[rows].mean(axis=1)  # (R,)
    return found


def value_of(of: Statistic, rows: int) -> float:
    """The statistic of every row once."""
    return float(of(np.arange(rows)[None])[0])


def score(task: LeaderboardTask, metric: Metric, targets: Sequence[str], answers: Sequence[str]) -> float:
    """A task's metric; the one it is ranked by is `task.metric`."""
    return value_of(statistic(metric, targets, answers), len(targets))


def average(told: Mapping[str, tuple[Sequence[str], Sequence[str]]], resamples: int, seed: int) -> Interval:
    """The leaderboard's average: the plain mean of the nine tasks' own metrics, each task's rows resampled for themselves.

    told: targets and answers of each task by name. Raises KeyError if one of the nine is missing."""
    values, found = [], np.zeros(resamples)  # (R,)
    for task in TASKS.values():
        targets, answers = told[task.name]
        of = statistic(task.metric, targets, answers)
        values.append(value_of(of, len(targets)))
        found += replicates(of, len(targets), resamples, seed_of(seed, task.name)) / len(TASKS)
    return percentile_interval(float(np.mean(values)), found, sum(len(targets) for targets, _ in told.values()))
