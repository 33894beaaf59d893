"""Scores of lm-evaluation-harness's tasks, and the rows behind them: what an artifact of stage `harness` holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from sppo.errors import EvaluationError
from sppo.statistics import Interval
from sppo.store import Artifact

SCORES_FILE = "scores.parquet"

ROWS = pa.schema(
    [
        pa.field("task", pa.string(), False),
        pa.field("filter", pa.string(), False),
        pa.field("row", pa.int64(), False),
        pa.field("document", pa.string(), False),
        pa.field("prompt", pa.string(), False),
        pa.field("continuations", pa.list_(pa.string()), False),
        pa.field("replies", pa.list_(pa.string()), False),
        pa.field("answers", pa.list_(pa.string()), False),
        pa.field("target", pa.string(), False),
        pa.field("scores", pa.string(), False),
    ]
)
"""One row a question and filter: what was asked, what came back, what was read out of it. `document` and `scores` are JSON."""

SCORES = pa.schema(
    [
        pa.field("task", pa.string(), False),
        pa.field("metric", pa.string(), False),
        pa.field("filter", pa.string(), False),
        pa.field("value", pa.float64(), False),
        pa.field("low", pa.float64(), False),
        pa.field("high", pa.float64(), False),
        pa.field("n", pa.int64(), False),
        pa.field("higher_is_better", pa.bool_()),
        pa.field("shots", pa.int64()),
        pa.field("version", pa.string(), False),
        pa.field("within", pa.string()),
    ]
)
"""One row a score, as `Score`."""


@dataclass(frozen=True)
class Score:
    """One number of a task or group, in the metric's own units: shares, not percent."""

    task: str
    metric: str
    filter: str
    """How answers were read: upstream's name for it."""
    interval: Interval
    """95 %, over the rows."""
    higher_is_better: bool | None
    shots: int | None
    version: str
    """Of the task's definition."""
    within: str | None = None
    """The outermost group of upstream's in whose mean it counts, such as `mmlu`; None for a score that stands for itself."""


def part_name(task: str) -> str:
    """Name of a task's part; its files are this with `.rows.parquet` and `.scores.parquet`."""
    return "".join(character if character.isalnum() or character in "_.-" else "-" for character in task)


def to_table(scores: Sequence[Score]) -> pa.Table:
    """Scores as an Arrow table."""
    rows = [
        {
            "task": score.task,
            "metric": score.metric,
            "filter": score.filter,
            "value": score.interval.value,
            "low": score.interval.low,
            "high": score.interval.high,
            "n": score.interval.n,
            "higher_is_better": score.higher_is_better,
            "shots": score.shots,
            "version": score.version,
            "within": score.within,
        }
        for score in scores
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)


def from_table(table: pa.Table) -> list[Score]:
    """Scores of an Arrow table."""
    return [
        Score(
            row["task"],
            row["metric"],
            row["filter"],
            Interval(row["value"], row["low"], row["high"], row["n"]),
            row["higher_is_better"],
            row["shots"],
            row["version"],
            row["within"],
        )
        for row in table.to_pylist()
    ]


def scores_of(artifact: Artifact) -> list[Score]:
    """The scores of a harness artifact: each task's, a group's own, and the leaderboard's average where all nine are there."""
    return from_table(artifact.table(SCORES_FILE))


def rows_of(artifact: Artifact, task: str) -> pa.Table:
    """The rows of one named task, or of a group's tasks."""
    return artifact.table(f"{part_name(task)}.rows.parquet")


def right_answers(rows: pa.Table, metric: str, filter_name: str) -> dict[tuple[str, int], bool]:
    """Whether each row was answered right, by task and row: what two models are paired by in McNemar's test.

    Of a metric that is 0 or 1 a row, or holds a row's target and answer. Raises EvaluationError for any other."""
    found = {}
    for row in rows.to_pylist():
        value = json.loads(row["scores"]).get(metric) if row["filter"] == filter_name else None
        if value is None:
            continue
        if isinstance(value, list) and len(value) == 2:
            value = float(value[0] == value[1])
        if value not in (0, 1):
            raise EvaluationError(
                f"{metric} of row {row['row']} of {row['task']} is {value}; expected 0 or 1, or a target and an answer: pair "
                "rows by an accuracy"
            )
        found[row["task"], row["row"]] = bool(value)
    return found
