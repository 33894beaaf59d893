"""Which token ids are trained on, and towards which target: the join of prompts, responses and targets.

N prompts, T tokens. Ids are exactly those that were sampled: nothing is rendered or tokenised again.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sppo.errors import TrainError
from sppo.store import Artifact, ArtifactFile

TokenIds = npt.NDArray[np.int32]
Key = TypeVar("Key")
NO_TOKENS: TokenIds = np.empty(0, np.int32)


@dataclass(frozen=True)
class TrainingResponse:
    """A selected response y of a prompt."""

    row: int
    """Its place among all selected responses, 0 .. R-1."""
    k: int
    token_ids: TokenIds
    """(T,), cut at the recipe's max_tokens; no EOS is added."""
    win_probability: float
    """P(y > pi_t | x)."""
    role: str
    """`best`, `worst` or `other`."""
    beats_worst: float = math.nan
    """P(y > the prompt's worst | x); nan if none is the worst."""


@dataclass(frozen=True)
class TrainingPrompt:
    """A prompt x and its selected responses, which are trained on in one step."""

    prompt_id: str
    token_ids: TokenIds
    """(T,)."""
    responses: tuple[TrainingResponse, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed: the prompt once, and its responses."""
        return len(self.token_ids) + sum(len(response.token_ids) for response in self.responses)


@dataclass(frozen=True)
class Examples:
    """All that one iteration trains on, in the order of prompt ids."""

    prompts: list[TrainingPrompt]
    unselected: int = 0
    """Prompts without a selected response."""
    overlong: int = 0
    """Selected prompts that leave no room for a response token within max_tokens."""
    prompt_ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", [prompt.prompt_id for prompt in self.prompts])

    @property
    def responses(self) -> list[TrainingResponse]:
        """All selected responses; position i has row i."""
        return [response for prompt in self.prompts for response in prompt.responses]

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, each prompt counted once."""
        return sum(prompt.tokens for prompt in self.prompts)


def open_examples(prompts: ArtifactFile, responses: Artifact, targets: Artifact, max_tokens: int) -> Examples:
    """Examples from artifacts; only the columns that training needs are read.

    Raises TrainError as join_examples does."""
    return join_examples(
        _columns(prompts.artifact, prompts.name, ["prompt_id", "token_ids"]),
        response_columns(responses, "token_ids"),
        targets.tables(),
        max_tokens,
    )


def response_columns(responses: Artifact, column: str) -> pa.Table:
    """Every response's prompt_id, k and one column more, read from all chunks."""
    chunks = [_columns(responses, name, ["prompt_id", "k", column]) for name in responses.file_names(".parquet")]
    return pa.concat_tables(chunks)


def join_examples(prompts: pa.Table, responses: pa.Table, targets: pa.Table, max_tokens: int) -> Examples:
    """Selected targets with their prompt's and response's token ids; a sequence is cut at max_tokens.

    Raises TrainError for a target without its response or prompt, or with a probability outside [0, 1]."""
    selected = targets.filter(pc.field("selected"))
    prompt_ids = _token_ids(prompts, prompts["prompt_id"].to_pylist())
    keys = list(zip(responses["prompt_id"].to_pylist(), responses["k"].to_pylist(), strict=True))
    response_ids = _token_ids(responses, keys)
    chosen: dict[str, list[TrainingResponse]] = {}
    columns = [selected[name].to_pylist() for name in ("prompt_id", "k", "win_probability", "role", "beats_worst")]
    for prompt_id, k, probability, role, beats_worst in zip(*columns, strict=True):
        _check_target(prompt_id, k, probability, prompt_ids, response_ids)
        one = TrainingResponse(0, k, NO_TOKENS, probability, role, math.nan if beats_worst is None else beats_worst)
        chosen.setdefault(prompt_id, []).append(one)
    examples: list[TrainingPrompt] = []
    row = 0
    for prompt_id in sorted(chosen):
        room = max_tokens - len(prompt_ids[prompt_id])
        every = sorted(chosen[prompt_id], key=lambda one: one.k)
        cut = [replace(one, token_ids=response_ids[prompt_id, one.k][: max(0, room)]) for one in every]
        kept = [one for one in cut if len(one.token_ids)]
        made = tuple(replace(one, row=row + number) for number, one in enumerate(kept))
        row += len(made)
        if made:
            examples.append(TrainingPrompt(prompt_id, prompt_ids[prompt_id], made))
    unselected = len(set(targets["prompt_id"].to_pylist()) - set(chosen))
    return Examples(examples, unselected=unselected, overlong=len(chosen) - len(examples))


def _columns(artifact: Artifact, name: str, columns: list[str]) -> pa.Table:
    return pq.read_table(artifact.path(name), columns=columns, page_checksum_verification=True)


def _token_ids(table: pa.Table, keys: Sequence[Key]) -> dict[Key, TokenIds]:
    """Each row's ids as a view into one array: 100,000 responses as Python lists would take gigabytes."""
    found: dict[Key, TokenIds] = {}
    position = 0
    for chunk in table["token_ids"].chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)  # (all tokens of the chunk,)
        offsets = chunk.offsets.to_numpy()  # (rows + 1,)
        for start, end in itertools.pairwise(offsets):
            found[keys[position]] = values[start:end]
            position += 1
    return found


def _check_target(
    prompt_id: str,
    k: int,
    probability: float,
    prompts: Mapping[str, TokenIds],
    responses: Mapping[tuple[str, int], TokenIds],
) -> None:
    if prompt_id not in prompts:
        raise TrainError(f"a target names prompt {prompt_id!r}, which the portion does not have; estimate again")
    if (prompt_id, k) not in responses:
        raise TrainError(f"the target of prompt {prompt_id!r}, response {k} has no such response; estimate again")
    if not 0 <= probability <= 1:
        raise TrainError(
            f"win probability of prompt {prompt_id!r}, response {k} is {probability}; expected 0 to 1: estimate again"
        )
