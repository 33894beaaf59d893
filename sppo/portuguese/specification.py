"""What a task of the Open Portuguese LLM Leaderboard is: rows, shots, words, how an answer is read and scored.

A row is one question. Every task is answered in at most 32 tokens, greedily.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Row = Mapping[str, Any]
Metric = Literal["acc", "f1_macro", "pearson", "mse"]

VERSION = 1
"""Of the nine tasks, raised when what they ask or how they read an answer changes."""
FILTER = "answer"
"""How lm-evaluation-harness names the one way in which each task reads its answers."""
MAX_NEW_TOKENS = 32
STOP = ("\n\n",)
BETWEEN_SHOTS = "\n\n"
BEFORE_ANSWER = " "
MAX_LENGTH = 2560
"""Tokens of prompt and answer together in the leaderboard's own runs; a longer prompt loses shots, from the last on."""
ALTERNATIVES = "alternatives"
"""In a question's template: one line an alternative, `A. text`."""


@dataclass(frozen=True)
class Table:
    """A dataset of the hub."""

    dataset: str
    config: str | None = None

    @property
    def folder(self) -> str:
        """Where its splits are kept: the dataset's name, and its config's where it has several."""
        return self.dataset if self.config is None else f"{self.dataset}/{self.config}"


@dataclass(frozen=True)
class LeaderboardTask:
    """One task."""

    name: str
    """Ours, in lm-evaluation-harness."""
    leaderboard_name: str
    card_name: str
    """In a model card's index, as `card_type`."""
    card_type: str
    table: Table
    test_split: str
    shot_split: str
    shots: int
    """Shown before each question."""
    shot_column: str | None
    """Whose values `shot_ids` are; None: they are numbers of rows, from 0."""
    shot_ids: tuple[str, ...] | tuple[int, ...]
    """In the order of showing, the first `shots` of them; empty: the first rows."""
    shots_are_tested: bool
    """False: no row named in `shot_ids`, shown or not, is a test row."""
    description: str
    question: str
    """Filled in with a row's columns."""
    target_column: str
    words: Mapping[str | int, str] | None
    """What the target column's values are called; None: as they are, a number with one decimal and a decimal comma."""
    other_word: str | None
    """Of a value that `words` leaves out; None: it is an error."""
    reading: Literal["choice", "label", "number"]
    """How an answer is read: one of the letters, one of the labels, or a number from 1 to 5."""
    answers: tuple[str, ...]
    """Letters or labels. Of two labels as near, the first is taken."""
    metric: Metric
    more_metrics: tuple[Metric, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Of the dataset, each once."""
        return tuple(dict.fromkeys((self.shot_split, self.test_split)))

    @property
    def columns(self) -> tuple[str, ...]:
        """That the task reads."""
        fields = [name for _, name, _, _ in string.Formatter().parse(self.question) if name]
        own = ["choices" if name == ALTERNATIVES else name for name in fields]
        key = [] if self.shot_column is None else [self.shot_column]
        return tuple(dict.fromkeys([*key, *own, self.target_column]))
