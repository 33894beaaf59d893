"""What a model reads: a description, shots, a question; as turns of a chat, or as one text.

The leaderboard strips each turn. Where a chat template refuses a system role, the description comes before the first question,
with an empty line between; lm-evaluation-harness drops it there in silence.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sppo.errors import EvaluationError
from sppo.portuguese.specification import ALTERNATIVES, BEFORE_ANSWER, BETWEEN_SHOTS, LeaderboardTask, Row
from sppo.rendering import folded

Turns = list[dict[str, str]]
Template = Callable[..., Any]
"""Turns to what a backend sends to its model: rendered text, or the turns again for a server that renders them itself."""


def question(task: LeaderboardTask, row: Row) -> str:
    """A row's question, its template filled in."""
    values = dict(row)
    if f"{{{ALTERNATIVES}}}" in task.question:
        choices = row["choices"]
        lines = [f"{label}. {text}" for label, text in zip(choices["label"], choices["text"], strict=True)]
        values[ALTERNATIVES] = "\n".join(lines).strip()
    return task.question.format_map(values)


def target(task: LeaderboardTask, row: Row) -> str:
    """A row's right answer. Raises EvaluationError for a value that has no word."""
    value = row[task.target_column]
    if task.words is None:
        return f"{value:.1f}".replace(".", ",") if isinstance(value, float) else str(value)
    word = task.words.get(value, task.other_word)
    if word is None:
        raise EvaluationError(
            f"{task.table.folder} has {value!r} in column {task.target_column}; expected one of "
            f"{', '.join(map(repr, task.words))}: fetch the tables again"
        )
    return word


def shots(task: LeaderboardTask, rows: Sequence[Row]) -> list[Row]:
    """The rows that are shown before each question, in the order of their ids.

    rows: the shot split, whole. Raises EvaluationError for an id that is not there."""
    if not task.shot_ids:
        found: dict[Any, Row] = dict(enumerate(rows[: task.shots]))
    elif task.shot_column is None:
        found = dict(enumerate(rows))
    else:
        found = {row[task.shot_column]: row for row in reversed(rows)}  # of rows with one id the first
    wanted = (task.shot_ids or tuple(range(task.shots)))[: task.shots]
    missing = [shot for shot in wanted if shot not in found]
    if missing:
        raise EvaluationError(
            f"{task.name}: split {task.shot_split} of {task.table.folder} has {len(rows)} rows and none with "
            f"{task.shot_column or 'the number'} {missing[0]!r}; expected all {task.shots} shots: fetch the tables again"
        )
    return [found[shot] for shot in wanted]


def asked_rows(task: LeaderboardTask, rows: Sequence[Row]) -> list[Row]:
    """The rows that are asked about, in their order: all, or all but those named as shots.

    rows: the test split, whole."""
    if task.shots_are_tested:
        return list(rows)
    named = set(task.shot_ids)
    return [row for row in rows if row[str(task.shot_column)] not in named]


def turns(task: LeaderboardTask, shown: Sequence[Row], row: Row) -> Turns:
    """The description as system turn, each shot as a question and its answer, then the question."""
    conversation = [{"role": "system", "content": task.description.strip()}]
    for shot in shown:
        conversation += [
            {"role": "user", "content": question(task, shot).strip()},
            {"role": "assistant", "content": target(task, shot).strip()},
        ]
    return [*conversation, {"role": "user", "content": question(task, row).strip()}]


def text(task: LeaderboardTask, shown: Sequence[Row], row: Row) -> str:
    """The same for a model without a chat template."""
    answered = [question(task, shot) + BEFORE_ANSWER + target(task, shot) + BETWEEN_SHOTS for shot in shown]
    return task.description + "".join(answered) + question(task, row)


class Folding:
    """A chat template that keeps what a system turn says: folded into the first user turn if the template would lose it.

    Whether it does is seen in what it renders; a server that renders for itself is believed to keep the turn, unless told."""

    def __init__(self, template: Template, always: bool = False) -> None:
        self.template = template
        self.folds = always

    def __call__(self, conversation: Sequence[dict[str, str]], **options: Any) -> Any:
        told = [dict(turn) for turn in conversation]
        if not self.folds and told and told[0]["role"] == "system":
            rendered = self.template(told, **options)
            if not isinstance(rendered, str) or told[0]["content"].strip() in rendered:
                return rendered
            self.folds = True
        return self.template(folded(told) if self.folds else told, **options)
