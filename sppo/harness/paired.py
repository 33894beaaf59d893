"""Two policies on the same questions of lm-evaluation-harness's tasks: what changed, and whether it could be chance.

Where a score is a share of right answers, by McNemar's exact test; the Portuguese tasks' F1 and correlation, and the average
of the nine, by a paired bootstrap over rows. N questions, R resamples.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sppo.card import Comparison, LeftOut, leaderboard
from sppo.errors import EvaluationError
from sppo.fingerprint import seed_of
from sppo.harness.card import DECIMALS, Asked, Place, place_of, read_asked
from sppo.harness.scores import Score, from_table, part_name, right_answers, rows_of
from sppo.harness.stage import AVERAGE
from sppo.portuguese import metrics
from sppo.portuguese.specification import LeaderboardTask
from sppo.portuguese.tasks import TASKS
from sppo.statistics import Array, Positions, difference, mcnemar, paired_difference, replicates
from sppo.store import Artifact

NEARLY = 1e-9
Found = Comparison | LeftOut
Policies = tuple[int, int]
"""t and the number of the earlier policy."""


def compare(policies: Policies, artifacts: tuple[Artifact, Artifact], entry: int, resamples: int, seed: int) -> Iterator[Found]:
    """Comparisons of pi_t with an earlier policy by their artifacts of one entry of the recipe, p-values as they are.

    Tasks whose questions were not the same for both are left out, and named."""
    one, other = (read_asked(artifact, entry) for artifact in artifacts)
    otherwise = _asked_otherwise(one, other)
    if otherwise:
        yield LeftOut(against=policies[1], what=one.group, why=f"which was asked otherwise: {otherwise}")
        return
    drawn: dict[str, tuple[float, Array, int]] = {}
    shown: set[Place] = set()
    for name in one.harness["tasks"]:
        rows, others = (rows_of(artifact, name) for artifact in artifacts)
        if not _same_questions(rows, others):
            yield LeftOut(against=policies[1], what=name, why="whose questions have changed in between")
        elif name in TASKS:
            yield _of_portuguese(policies, TASKS[name], rows, others, drawn, resamples, seed)
        else:
            scores = from_table(artifacts[0].table(f"{part_name(name)}.scores.parquet"))
            placed = {place: score for score in scores if (place := place_of(score, one)) is not None and place not in shown}
            shown |= placed.keys()
            yield from _of_upstream(policies, placed, scores, rows, others, resamples, seed)
    if drawn.keys() == TASKS.keys():
        yield _of_average(policies, drawn)


def _asked_otherwise(one: Asked, other: Asked) -> str:
    """What differs in how two policies were asked, besides what belongs to a policy; mostly nothing."""
    for name in {**one.recipe, **other.recipe}:
        if not name.startswith("policy.") and one.recipe.get(name) != other.recipe.get(name):
            return f"{name} is {other.recipe.get(name)} there and {one.recipe.get(name)} here"
    return "" if one.tables == other.tables else "its tables are others"


def _same_questions(rows: pa.Table, others: pa.Table) -> bool:
    columns = ["task", "filter", "row", "document"]
    return bool(rows.select(columns).equals(others.select(columns)))


def _of_portuguese(
    policies: Policies,
    task: LeaderboardTask,
    rows: pa.Table,
    others: pa.Table,
    drawn: dict[str, tuple[float, Array, int]],
    resamples: int,
    seed: int,
) -> Comparison:
    """By the metric that the task is ranked by. drawn: takes its difference, the replicates of it, (R,), and n, by task."""
    targets = rows["target"].to_pylist()
    answers, rivals = ([each[0] for each in found["answers"].to_pylist()] for found in (rows, others))  # (N,) each
    ours, theirs = (metrics.statistic(task.metric, targets, said) for said in (answers, rivals))

    def gained(positions: Positions) -> Array:
        return ours(positions) - theirs(positions)  # (r,)

    value = metrics.value_of(gained, len(targets))
    found = replicates(gained, len(targets), resamples, seed_of(seed, task.name))  # (R,)
    drawn[task.name] = value, found, len(targets)
    counted = None
    if task.metric == "acc":
        right, rights = ([said == target for said, target in zip(each, targets, strict=True)] for each in (answers, rivals))
        counted = mcnemar(np.array(right), np.array(rights))
    changed = difference(value, found, len(targets))
    place = (*policies, leaderboard.GROUP, task.card_name)
    return Comparison.of(place, changed.interval, changed.p_value, counted, 100, "points")


def _of_average(policies: Policies, drawn: dict[str, tuple[float, Array, int]]) -> Comparison:
    values, found, rows = zip(*drawn.values(), strict=True)
    changed = difference(float(np.mean(values)), np.mean(found, axis=0), sum(rows))
    return Comparison.of((*policies, leaderboard.GROUP, AVERAGE), changed.interval, changed.p_value, None, 100, "points")


def _of_upstream(
    policies: Policies,
    placed: Mapping[Place, Score],
    scores: Sequence[Score],
    rows: pa.Table,
    others: pa.Table,
    resamples: int,
    seed: int,
) -> Iterator[Comparison]:
    """Of every score of these that is the share of right answers: a task's, or a group's over its tasks.

    scores: of the whole part, which say who belongs to a group."""
    for place, score in placed.items():
        members = {other.task for other in scores if other.within == score.task} or {score.task}
        right, rights = (_right(found, members, score) for found in (rows, others))
        if right is None or rights is None or abs(right.mean() - score.interval.value) > NEARLY:
            continue  # no share of right answers: an F1, or a mean of tasks that does not go by their sizes
        changed = paired_difference(right.astype(np.float64), rights.astype(np.float64), resamples, seed_of(seed, score.task))
        counted = mcnemar(right, rights)
        yield Comparison.of((*policies, *place), changed.interval, changed.p_value, counted, decimals=DECIMALS)


def _right(rows: pa.Table, tasks: set[str], score: Score) -> np.ndarray | None:
    """(N,) whether each row of these tasks is right, by the score's metric; None for one that is not right or wrong."""
    asked = rows.filter(pc.is_in(rows["task"], pa.array(sorted(tasks))))
    try:
        found = right_answers(asked, score.metric, score.filter)
    except EvaluationError:  # a metric that a row has more or less of
        return None
    return np.array(list(found.values()), dtype=np.bool_) if found else None
