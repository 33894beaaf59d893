"""Scores of an evaluation, as it hands them on: `scores.json` of an artifact `benchmark`, or a file beside it.

One row is one number of one policy, with its interval and how many rows it is a mean of.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from sppo.configuration import Frozen, parse_json, validate
from sppo.errors import CardError
from sppo.fingerprint import canonical_json
from sppo.statistics import Interval

FILE = "scores.json"
Text = Annotated[str, Field(min_length=1)]
Kind = TypeVar("Kind", bound=Frozen)


class Dataset(Frozen):
    """What a benchmark's score was measured on, as a model index names it."""

    name: Text
    """For people, such as `ENEM Challenge (No Images)`."""
    type: Text
    """Its id, such as `eduagarcia/enem_challenge`."""
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    args: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """How it was asked, such as `num_few_shot: 3`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the rows that were read. Not part of a model index."""


class Metric(Frozen):
    """What a benchmark's score counts, as a model index names it."""

    type: Text
    """Such as `f1_macro`."""
    name: Text
    """Such as `f1-macro`."""


class Source(Frozen):
    """Who measured a score that the run did not."""

    name: Text
    url: Annotated[str, Field(pattern=r"^https?://[^\s<>()]+$")]


class Score(Frozen):
    """One number of one policy."""

    policy: Annotated[int, Field(ge=0)]
    """i of pi_i; 0 is the base policy."""
    group: Text
    """What it belongs to, such as `AlpacaEval 2` or `Open Portuguese LLM Leaderboard`."""
    name: Text
    """Within its group, such as `length-controlled win rate`."""
    value: float
    low: float | None = None
    """Of the 95 % interval, in the value's unit."""
    high: float | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    """Rows behind it: prompts, or a benchmark's questions."""
    unit: str = ""
    """Such as `%` or `characters`; without one the value is a plain number."""
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    """The value is shown, and put into the model index, with so many."""
    dataset: Dataset | None = None
    """With one, the score is a benchmark's and enters the model index; without, it is a column of the table of iterations."""
    metric: Metric | None = None
    source: Source | None = None

    @classmethod
    def measured(cls, policy: int, group: str, name: str, found: Interval, scale: float = 1, **more: Any) -> Self:
        """A number with its interval. scale: 100 for a share that is to be shown in percent; `more` are other fields."""
        value, low, high = (scale * each for each in (found.value, found.low, found.high))
        return cls(policy=policy, group=group, name=name, value=value, low=low, high=high, n=found.n, **more)

    @model_validator(mode="after")
    def _says_how_sure_it_is(self) -> Self:
        beside = (self.low, self.high, self.n)
        if None in beside and (self.source is None or any(each is not None for each in beside)):
            raise ValueError(
                f"{self.group}, {self.name}: low, high and n are {beside}; expected all three beside every value that was "
                "measured here, or none of them and a source that published the value"
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.group}, {self.name}: the interval goes from {self.low:g} to {self.high:g}; swap them")
        return self

    @model_validator(mode="after")
    def _is_a_whole_entry(self) -> Self:
        if (self.dataset is None) != (self.metric is None):
            raise ValueError(f"{self.group}, {self.name}: a dataset and a metric go together; expected both or neither")
        return self


class Scores(Frozen):
    """All scores of an evaluation, and how they were measured."""

    scores: tuple[Score, ...]
    notes: dict[str, dict[str, str]] = Field(default_factory=dict)
    """By group, in words: judge, order, decoding, what is left out."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that measured, such as `lm-eval: 0.4.13`."""

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        seen: set[tuple[int, str, str]] = set()
        for score in self.scores:
            mark = (score.policy, score.group, score.name)
            if mark in seen:
                raise ValueError(f"pi_{score.policy} has {score.group}, {score.name} twice; expected each score once")
            seen.add(mark)
        for policy in {score.policy for score in self.scores}:
            check_apart(score for score in self.scores if score.policy == policy)
        return self

    def to_json(self) -> str:
        """What `read_scores` reads."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def check_apart(scores: Iterable[Score]) -> None:
    """Raises ValueError for benchmark scores of one policy that readers of a model index would merge into one entry.

    They merge entries of equal dataset type, config, split and revision, and keep the first one's name, arguments and source:
    right for two metrics of one task, wrong for two tasks or two sources."""
    first: dict[str, Score] = {}
    for score in scores:
        if score.dataset is None:
            continue
        dataset = score.dataset
        entry = canonical_json([dataset.type, dataset.config, dataset.split, dataset.revision])
        other = first.setdefault(entry, score)
        if other.dataset is not None and (other.dataset.name, other.dataset.args, other.source) != (
            dataset.name,
            dataset.args,
            score.source,
        ):
            raise ValueError(
                f"{other.group}, {other.name} and {score.group}, {score.name} have dataset type {dataset.type!r} with equal "
                "config, split and revision, and readers would merge them under the first one's name and source; "
                "give one of them another type, config or revision"
            )


def parse_scores(content: bytes | str, where: str) -> Scores:
    """Scores from the JSON of an evaluation. Raises CardError naming what is wrong, and where."""
    return parsed(Scores, content, where)


def parsed(kind: type[Kind], content: bytes | str, where: str) -> Kind:
    """A model of this kind from its JSON. Raises CardError naming what is wrong, and where."""
    try:
        values = parse_json(content)
    except ValueError as problem:
        raise CardError(f"{where} is not JSON: {problem}; evaluate again, or give another file") from problem
    if not isinstance(values, dict):
        raise CardError(f"{where} holds a {type(values).__name__}; expected an object with `{next(iter(kind.model_fields))}`")
    return validate(kind, values, where, CardError)


def read_scores(path: Path) -> Scores:
    """Scores from a file. Raises CardError if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise CardError(f"cannot read scores from {path}: {problem.strerror}; give the path of a {FILE}") from problem
    return parse_scores(content, str(path))


def merged(parts: Iterable[Scores]) -> Scores:
    """Scores of several evaluations as one; of a score that several have, the last one's.

    Raises CardError if two of them would merge in a model index."""
    scores: dict[tuple[int, str, str], Score] = {}
    notes: dict[str, dict[str, str]] = {}
    versions: dict[str, str] = {}
    for part in parts:
        scores |= {(score.policy, score.group, score.name): score for score in part.scores}
        notes |= part.notes
        versions |= part.versions
    values = {"scores": [score.model_dump(mode="json") for score in scores.values()], "notes": notes, "versions": versions}
    return validate(Scores, values, "the scores", CardError)
