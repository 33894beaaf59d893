"""Verdicts on a model's answers, in alpaca_eval's schema: one object an instruction.

`output_1` is the reference's answer and `output_2` the model's. `preference` lies between 1, the
reference is better, and 2, the model is; 1.5 is a draw; null was not judged, and never counts as a draw.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sppo.configuration import parse_json
from sppo.errors import EvaluationError
from sppo.explanation import kind_of

Array = npt.NDArray[np.float64]

TEXTS = ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator")
"""Columns that each row has."""
RAW = "preference_raw_completion"
"""What a preference was read from. Tables that were made before alpaca_eval 0.6.5 call it `raw_completion`."""
OLD_DRAW, STORED_AS_MISSING = 0.0, -1.0
"""What alpaca_eval wrote for a draw once, and what its cache writes for a row without a verdict."""


@dataclass(frozen=True)
class Annotation:
    """A verdict on one instruction, or that there is none yet."""

    instruction: str
    output_1: str
    """The reference's answer."""
    generator_1: str
    output_2: str
    """The model's."""
    generator_2: str
    annotator: str
    """The judge's name."""
    preference: float | None
    """1 to 2, or None for a row that was not judged."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Columns besides, such as `dataset`, as they are."""

    @property
    def preference_for_model(self) -> float:
        """In [0, 1]; nan if it was not judged."""
        return math.nan if self.preference is None else self.preference - 1

    def with_verdict(self, preference: float, raw: Mapping[str, Any]) -> "Annotation":
        """The same row, judged."""
        return replace(self, preference=preference, more={**self.more, RAW: dict(raw)})


def preferences(annotations: Sequence[Annotation]) -> Array:
    """(N,) preference for the model, in [0, 1]; nan where there is no verdict."""
    return np.array([one.preference_for_model for one in annotations], dtype=np.float64)


def unjudged(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Rows without a verdict."""
    return [one for one in annotations if one.preference is None]


def by_instruction(annotations: Iterable[Annotation]) -> dict[str, Annotation]:
    """The annotations by instruction. Raises EvaluationError for one that is there twice."""
    found: dict[str, Annotation] = {}
    for one in annotations:
        if one.instruction in found:
            raise EvaluationError(
                f"the instruction {shown(one.instruction)} is annotated twice; expected once: take one of the rows out"
            )
        found[one.instruction] = one
    return found


def shown(instruction: str) -> str:
    """An instruction's beginning, for messages."""
    return repr(instruction if len(instruction) <= 60 else f"{instruction[:60]}..")


def to_json(annotations: Sequence[Annotation]) -> str:
    """alpaca_eval's `annotations.json`, in the order given: its own length control goes by row, so keep the set's order."""
    rows = [
        {
            "instruction": one.instruction,
            **{name: one.more[name] for name in ("dataset",) if name in one.more},
            "output_1": one.output_1,
            "generator_1": one.generator_1,
            "output_2": one.output_2,
            "generator_2": one.generator_2,
            "annotator": one.annotator,
            "preference": one.preference,
            **one.more,
        }
        for one in annotations
    ]
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def from_json(text: str, where: str = "annotations.json") -> list[Annotation]:
    """The rows of an `annotations.json`, whoever wrote it.

    Raises EvaluationError naming the row for one that lacks a column, has a preference outside 1 to 2, or an instruction that
    was there before."""
    try:
        rows = parse_json(text)
    except ValueError as problem:
        raise EvaluationError(f"{where} is not JSON: {problem}; expected a list of annotations: write it again") from problem
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{where} holds {kind_of(rows)}; expected a list of objects, one an instruction")
    annotations = [_from_row(row, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]
    by_instruction(annotations)
    return annotations


def _from_row(row: dict[str, Any], where: str) -> Annotation:
    for name in TEXTS:
        if not isinstance(row.get(name), str):
            raise EvaluationError(
                f"{where}: {name} is {row.get(name)!r}; expected text, in the columns {', '.join(TEXTS)} and preference"
            )
    more = {name: value for name, value in row.items() if name not in (*TEXTS, "preference")}
    return Annotation(**{name: row[name] for name in TEXTS}, preference=_preference(row.get("preference"), where), more=more)


def _preference(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == STORED_AS_MISSING:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not (value == OLD_DRAW or 1 <= value <= 2):
        raise EvaluationError(
            f"{where}: preference is {value!r}; expected 1 (the reference is better) to 2 (the model is), or null for none"
        )
    return 1.5 if value == OLD_DRAW else float(value)
