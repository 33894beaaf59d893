"""Rows that travel between the stages, and their Arrow schemas. N prompts, K responses, T tokens.

| rows | stage | one row is |
|---|---|---|
| Prompt | split | a prompt, rendered once: `token_ids` is what every later stage reads |
| Response | generate | one of K responses: ids, text, finish reason, log-probs |
| Comparison | rank | a prompt's (K, K) judge logits, row-major |
| Duel | duel | a prompt's answers of one policy against another's, in both orders |
| Score | score | an answer's log-probs under another policy than the one that gave it |
| Target | estimate | a response's win probability, and whether it is trained on |
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import pyarrow as pa

Row = TypeVar("Row")

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))


@dataclass(frozen=True)
class Prompt:
    """x: the turns as given, and their rendered token ids, generation prompt included."""

    prompt_id: str
    messages: list[dict[str, str]]
    """Turns of role and content; the last is the user's."""
    token_ids: list[int]
    """What the policy reads: the chat template's rendering, with one BOS where the template has one."""


@dataclass(frozen=True)
class Response:
    """y_k ~ pi_t(.|x)."""

    prompt_id: str
    k: int
    """0 .. K-1."""
    token_ids: list[int]
    """Sampled ids, the stop token included if the response has one."""
    text: str
    """The ids decoded, special tokens left out: what judges read."""
    finish_reason: str
    """`stop`, or `length` if it was cut at max_tokens: then no stop token was sampled and none is added."""
    logprobs: list[float]
    """log pi_t(token) of each id in nats, before temperature and top-p."""
    seed: int
    """Of the prompt's draw."""


@dataclass(frozen=True)
class Comparison:
    """A prompt's judge logits: logits[i * K + j] = L_ij > 0 where y_i looks better than y_j, shown in that order."""

    prompt_id: str
    responses: int
    """K of this prompt."""
    logits: list[float]
    """K * K values, row-major; the diagonal is 0. nan where the judge gave no verdict."""
    members: list[list[float]] = field(default_factory=list)
    """Of an ensemble, the same of each judge in it."""


@dataclass(frozen=True)
class Duel:
    """A prompt's n answers of one policy against m of another, under a judge."""

    prompt_id: str
    first: int
    """n, answers of the newer policy."""
    second: int
    """m, answers of the other."""
    forward: list[float]
    """n * m logits L(new_i, other_j), row-major; none where that order was not asked."""
    backward: list[float]
    """m * n logits L(other_j, new_i), row-major; none where that order was not asked."""


@dataclass(frozen=True)
class Score:
    """An answer y_k ~ pi_t(.|x) under another policy, pi_s."""

    prompt_id: str
    k: int
    logprobs: list[float]
    """log pi_s(token) of each id of the answer in nats, before temperature and top-p."""


@dataclass(frozen=True)
class Target:
    """P(y_k > pi_t | x), and the response's part in training."""

    prompt_id: str
    k: int
    win_probability: float
    """In [0, 1]."""
    selected: bool
    """Trained on."""
    role: str
    """`best`, `worst`, `other`; or why the prompt is left out, such as `tied`."""
    beats_worst: float | None = None
    """P(y_k > the prompt's worst | x), in [0, 1]; None where none is the worst."""


SCHEMAS: dict[type, pa.Schema] = {
    Prompt: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("messages", MESSAGES, False),
            pa.field("token_ids", pa.list_(pa.int32()), False),
        ]
    ),
    Response: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("k", pa.int32(), False),
            pa.field("token_ids", pa.list_(pa.int32()), False),
            pa.field("text", pa.string(), False),
            pa.field("finish_reason", pa.string(), False),
            pa.field("logprobs", pa.list_(pa.float32()), False),
            pa.field("seed", pa.int64(), False),
        ]
    ),
    Comparison: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("responses", pa.int32(), False),
            pa.field("logits", pa.list_(pa.float32()), False),
            pa.field("members", pa.list_(pa.list_(pa.float32())), False),
        ]
    ),
    Duel: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("first", pa.int32(), False),
            pa.field("second", pa.int32(), False),
            pa.field("forward", pa.list_(pa.float32()), False),
            pa.field("backward", pa.list_(pa.float32()), False),
        ]
    ),
    Score: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("k", pa.int32(), False),
            pa.field("logprobs", pa.list_(pa.float32()), False),
        ]
    ),
    Target: pa.schema(
        [
            pa.field("prompt_id", pa.string(), False),
            pa.field("k", pa.int32(), False),
            pa.field("win_probability", pa.float64(), False),
            pa.field("selected", pa.bool_(), False),
            pa.field("role", pa.string(), False),
            pa.field("beats_worst", pa.float64()),
        ]
    ),
}


def to_table(kind: type[Row], rows: Iterable[Row]) -> pa.Table:
    """Rows as an Arrow table with their schema."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMAS[kind])  # type: ignore[call-overload]


def from_table(kind: type[Row], table: pa.Table) -> Iterator[Row]:
    """Rows of an Arrow table."""
    names: list[Any] = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for row in table.select(names).to_pylist():
        yield kind(**row)


def by_prompt(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows grouped by `prompt_id`, in the order of first appearance; responses keep their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row)  # type: ignore[attr-defined]
    return groups
