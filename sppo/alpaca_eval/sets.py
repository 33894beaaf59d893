"""What AlpacaEval 2 asks, what its reference model answered, and the gamed baselines: files pinned by sha256. N instructions.

A file is a path of this machine or any URL that fsspec reads (`s3://`, `hf://datasets/tatsu-lab/alpaca_eval/..`, `https://`).
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from sppo.alpaca_eval.annotations import shown
from sppo.configuration import parse_json
from sppo.errors import EvaluationError, StoreError
from sppo.explanation import kind_of
from sppo.recipe.alpaca_eval import EVALUATION_SET_SHA256, GAMED_BASELINES_SHA256
from sppo.store.backend import open_backend

LARGEST = 1e9
"""No figure of a baseline is further from 0."""
Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """One instruction of the set."""

    instruction: str
    reference: str
    """The reference model's answer."""
    dataset: str
    """Which of the set's sources it is from."""


@dataclass(frozen=True)
class EvaluationSet:
    """Instructions with a reference model's answers, in the set's own order."""

    questions: tuple[Question, ...]
    generator: str
    """The reference model."""
    sha256: str

    @property
    def official(self) -> bool:
        """Whether this is AlpacaEval 2's own set."""
        return self.sha256 == EVALUATION_SET_SHA256

    @property
    def instructions(self) -> list[str]:
        """In the set's order."""
        return [question.instruction for question in self.questions]


@dataclass(frozen=True)
class GamedBaselines:
    """Verdicts on two baselines that differ from the reference in length alone, and how difficult instructions are. G rows."""

    preferences: Array
    """(G,) for the gamed baseline, in [0, 1]; nan without a verdict."""
    length_differences: Array
    """(G,) reference - baseline, in standard deviations."""
    difficulties: Array
    """(G,)"""
    positions: Positions
    """(G,) places of their instructions in the evaluation set."""
    sha256: str

    @property
    def official(self) -> bool:
        """Whether these are AlpacaEval 2's own."""
        return self.sha256 == GAMED_BASELINES_SHA256

    def difficulty(self, positions: Sequence[int]) -> Array:
        """Of the instructions at these places of the set, (N,). Raises EvaluationError for one that has none."""
        known: dict[int, float] = {}
        for position, value in zip(self.positions.tolist(), self.difficulties.tolist(), strict=True):
            known.setdefault(position, value)
        missing = [position for position in positions if position not in known]
        if missing:
            raise EvaluationError(
                f"the gamed baselines have no difficulty for instruction {missing[0]} of the set, and for {len(missing)} in "
                "all; expected one for each: give the df_gamed.csv that belongs to the evaluation set, or none"
            )
        return np.array([known[position] for position in positions], dtype=np.float64)


def read_evaluation_set(url: str, sha256: str = EVALUATION_SET_SHA256) -> EvaluationSet:
    """AlpacaEval 2's set, or with another sha256 one's own in its form: a JSON list of instruction, output, generator.

    Raises EvaluationError for a file that cannot be read, has another digest, or is none of this form."""
    return parse_evaluation_set(read_pinned(url, sha256), shown_url(url))


def parse_evaluation_set(content: bytes, name: str) -> EvaluationSet:
    """A set from a file's content. Raises EvaluationError naming the file for one that is none of its form."""
    try:
        rows = parse_json(content)
        if not isinstance(rows, list) or not rows:
            raise TypeError("it holds no list of questions")
        questions = tuple(_question(row, number) for number, row in enumerate(rows, start=1))
        generators = sorted({str(row["generator"]) for row in rows})
    except (ValueError, KeyError, TypeError) as problem:
        raise EvaluationError(
            f"{name} is no evaluation set ({_cause(problem)}); "
            "expected a JSON list of objects with instruction, output and generator"
        ) from problem
    if len(generators) != 1:
        raise EvaluationError(
            f"{name} has answers of {len(generators)} generators: {', '.join(generators)}; expected one reference model"
        )
    found: set[str] = set()
    for question in questions:
        if question.instruction in found:
            raise EvaluationError(f"{name} has the instruction {shown(question.instruction)} twice; expected each once")
        found.add(question.instruction)
    return EvaluationSet(questions, generators[0], hashlib.sha256(content).hexdigest())


def read_gamed_baselines(url: str, sha256: str = GAMED_BASELINES_SHA256) -> GamedBaselines:
    """AlpacaEval 2's gamed baselines; another file only with its own sha256, and then `official` is false.

    Raises EvaluationError for a file that cannot be read, has another digest, or lacks a column."""
    return parse_gamed_baselines(read_pinned(url, sha256), shown_url(url))


def parse_gamed_baselines(content: bytes, name: str) -> GamedBaselines:
    """Baselines from a file's content. Raises EvaluationError naming the file for one that lacks a column."""
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
        if not rows:
            raise ValueError("it has no rows")
        columns = {
            column: np.array([float(row[column] or "nan") for row in rows])
            for column in ("preference", "std_delta_len", "instruction_difficulty", "index")
        }
        for column in ("index", "std_delta_len", "instruction_difficulty"):
            bad = ~(np.abs(columns[column]) <= LARGEST)  # (G,), also of nan
            if bad.any():
                raise ValueError(f"row {int(np.flatnonzero(bad)[0]) + 1} has no {column} that can be used")
        positions = columns["index"].astype(np.int64)  # (G,)
    except (ValueError, KeyError, TypeError, csv.Error) as problem:
        raise EvaluationError(
            f"{name} holds no gamed baselines ({_cause(problem)}); "
            "expected a CSV with the columns index, preference, std_delta_len and instruction_difficulty"
        ) from problem
    found = (columns["preference"], columns["std_delta_len"], columns["instruction_difficulty"], positions)
    return GamedBaselines(*found, hashlib.sha256(content).hexdigest())


def _cause(problem: Exception) -> str:
    if isinstance(problem, KeyError):
        return f"it has no {problem.args[0]}"
    if isinstance(problem, UnicodeEncodeError):
        return f"the text {shown(problem.object)!a} is not Unicode"
    return str(problem)


def read_pinned(url: str, sha256: str) -> bytes:
    """A file's content, which has this digest. Raises EvaluationError naming both digests if it has another."""
    content, name = _read(url), shown_url(url)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EvaluationError(
            f"{name} has the sha256 {found}; expected {sha256}: numbers from another file cannot be compared, "
            "so fetch the file again, or name its own digest if it is another set on purpose"
        )
    return content


def _read(url: str) -> bytes:
    import fsspec
    from aiohttp import ClientError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its own client, httpx or httpx2

    name = shown_url(url)
    try:
        if url.startswith("s3://"):  # with the store's patience and without s3fs' traps
            folder, _, key = url.rpartition("/")
            found = open_backend(folder).read(key)
            if found is None:
                raise FileNotFoundError("there is no such object")
            return found
        with fsspec.open(url, "rb") as stream:
            return bytes(stream.read())
    except (OSError, ValueError, ImportError, ClientError, HTTPError, StoreError) as problem:
        # the client's own words stay out of the message where the address may hold a secret: they echo it
        said = (problem.strerror if isinstance(problem, OSError) else None) or " ".join(str(problem).split())[:300]
        words = said if name == url else type(problem).__name__
        raise EvaluationError(
            f"cannot read {name}: {words}; expected a file of this machine or an address that fsspec reads: "
            "check the path, the network, and the credentials in the environment"
        ) from problem


def _question(row: Any, number: int) -> Question:
    if not isinstance(row, dict):
        raise TypeError(f"question {number} is {kind_of(row)}")
    texts = [row["instruction"], row["output"], row.get("dataset", "")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"question {number} has an instruction, output or dataset that is no text")
    for text in texts:
        text.encode("utf-8")  # a lone surrogate passes JSON, and no tokenizer
    return Question(*texts)


def shown_url(url: str) -> str:
    """An address for messages, without the secrets that may be in it."""
    parts = urlsplit(url)
    if not parts.username and not parts.password and not parts.query:
        return url
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, host + (f":{parts.port}" if parts.port else ""), parts.path, "", ""))
