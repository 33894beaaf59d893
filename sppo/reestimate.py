"""The same judgements under another estimator: which choices and how much of the targets would change, before anything is run.

Nothing is judged and nothing is written: logits and responses are those of the run's own artifacts. R target rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sppo.estimate import TARGETS, open_traits, targets
from sppo.recipe import Estimator, Recipe
from sppo.runs import IterationIndex
from sppo.store import Store

Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """From one estimate of an iteration to another."""

    prompts: int
    """Trained on after."""
    came_in: int
    """Prompts trained on after and not before."""
    fell_out: int
    """Prompts trained on before and not after."""
    shared: int
    """Prompts trained on before and after; the next three are of these."""
    another_best: int
    another_worst: int
    another_pair: int
    """Another best, another worst, or both."""
    responses: int
    """Trained on after."""
    mean: float
    """Mean of |P after - P before| over all responses that both estimated; the next three are of the same."""
    rms: float
    largest: float
    correlation: float
    """Of P before and after; nan where one of them never varies."""
    rms_before: float
    """Root mean square of P - 1/2 over the responses trained on before: what targets have in place of a size."""
    rms_after: float

    def comparable_eta(self, eta: float) -> float:
        """The eta with which the targets eta (P - 1/2) after have the root mean square that they have before with this one."""
        return eta * self.rms_before / self.rms_after if self.rms_after else float("nan")


@dataclass(frozen=True)
class Reestimate:
    """What another estimator makes of an iteration."""

    estimator: Estimator
    change: Change
    """From the run's own targets."""
    seconds: float
    """From logits to targets; finding the responses' traits and reading are not in it."""


@dataclass(frozen=True)
class Reestimates:
    """Of one iteration of a run."""

    recipe: Recipe
    """The run's."""
    own: Change
    """From the run's own targets to themselves: how many prompts and responses they train on, and their size."""
    others: tuple[Reestimate, ...]
    responses: int
    prompts: int
    reading_seconds: float
    """To read comparisons and responses, and to find the responses' traits: once for all estimators."""


def reestimate(store: Store, recipe: Recipe, index: IterationIndex, estimators: Sequence[Estimator]) -> Reestimates:
    """Targets of a finished iteration under each estimator, with the run's selection, against those it was trained on."""
    started = time.perf_counter()
    comparisons = index.opened(store, "rank").tables()
    traits = open_traits(recipe, comparisons, index.opened(store, "generate"))
    before = index.opened(store, "estimate").table(TARGETS)
    reading = time.perf_counter() - started
    made = []
    for estimator in estimators:
        started = time.perf_counter()
        after = targets(recipe.model_copy(update={"estimator": estimator}), comparisons, traits)
        seconds = time.perf_counter() - started
        made.append(Reestimate(estimator, change(before, after), seconds))
    return Reestimates(recipe, change(before, before), tuple(made), len(traits.cut), len(comparisons), reading)


def change(before: pa.Table, after: pa.Table) -> Change:
    """What differs between two tables of targets of the same responses; either may lack prompts that were not judged whole."""
    names = ["win_probability", "selected", "role"]
    joined = after.join(before, ["prompt_id", "k"], join_type="full outer", right_suffix="_before")
    prompts = joined["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy()  # (R,)
    p_after, chosen_after, role_after = (joined[name] for name in names)
    p_before, chosen_before, role_before = (joined[f"{name}_before"] for name in names)
    trained_before, trained_after = _flags(chosen_before), _flags(chosen_after)  # (R,)
    prompts_before, prompts_after = set(prompts[trained_before]), set(prompts[trained_after])
    shared = prompts_before & prompts_after
    moved = {
        role: set(prompts[_is(role_before, role, trained_before) != _is(role_after, role, trained_after)]) & shared
        for role in ("best", "worst")
    }
    was, now = _values(p_before), _values(p_after)  # (R,) nan where not estimated
    both = np.isfinite(was) & np.isfinite(now)  # (R,)
    difference = np.abs(now - was)[both]
    return Change(
        prompts=len(prompts_after),
        came_in=len(prompts_after - prompts_before),
        fell_out=len(prompts_before - prompts_after),
        shared=len(shared),
        another_best=len(moved["best"]),
        another_worst=len(moved["worst"]),
        another_pair=len(moved["best"] | moved["worst"]),
        responses=int(trained_after.sum()),
        mean=float(difference.mean()) if len(difference) else 0.0,
        rms=_rms(difference),
        largest=float(difference.max(initial=0.0)),
        correlation=_correlation(was[both], now[both]),
        rms_before=_rms(was[trained_before] - 0.5),
        rms_after=_rms(now[trained_after] - 0.5),
    )


def _flags(column: pa.ChunkedArray) -> Flags:
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=np.bool_)


def _is(column: pa.ChunkedArray, role: str, trained: Flags) -> Flags:
    return np.asarray(trained & _flags(pc.equal(column, role)))


def _values(column: pa.ChunkedArray) -> Array:
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(), dtype=np.float64)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0


def _correlation(one: Array, other: Array) -> float:
    if len(one) < 2 or not one.std() or not other.std():
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
