"""What PairRM reads: a prompt and two answers as token ids, cut per example and padded per batch. B rows, T tokens.

    [CLS] <|source|> prompt [SEP]  [CLS] <|candidate1|> first [SEP]  [CLS] <|candidate2|> second [SEP]

The layout, the limits and the order of cutting are llm-blender's (pair_ranker/collator.py, CrossCompareCollator). We differ in
two things: what a short prompt leaves free is shared out per example, there per batch, so that a score never depends on its
neighbours; and a control token typed by a user is plain text, where the library crashes or reads it as its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sppo.errors import JudgeError

Ids = npt.NDArray[np.int64]

PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
"""In the order in which llm-blender adds them to an encoder's vocabulary."""


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the tokens that only the layout may place."""

    cls: int
    sep: int
    pad: int
    source: int
    candidate1: int
    candidate2: int
    candidate: int
    """Only llm-blender's loader needs it; it never stands in an encoding."""


@dataclass(frozen=True)
class SegmentLimits:
    """Most tokens of a segment, its two or three control tokens included."""

    source: int
    candidate: int
    """Of each; both gain half of what the source leaves."""

    def of_candidates(self, source_tokens: int) -> int:
        """Most tokens of each candidate beside a source segment of this many tokens."""
        return self.candidate + (self.source - source_tokens) // 2


@dataclass(frozen=True)
class PairEncoding:
    """One question to the judge: is the first answer better than the second?"""

    ids: list[int]
    source: int
    """Position of <|source|> in ids; likewise the candidates'."""
    candidate1: int
    candidate2: int


@dataclass(frozen=True)
class PairBatch:
    """B questions, padded on the right to the longest."""

    ids: Ids  # (B, T)
    mask: Ids  # (B, T), 1 where a token stands
    source: Ids  # (B,)
    candidate1: Ids  # (B,)
    candidate2: Ids  # (B,)


class JudgeTokenizer:
    """A judge folder's tokenizer.json, read as it is: transformers 5 would normalise DeBERTa's text by other rules.

    Raises JudgeError for a folder without tokenizer.json, or one without [CLS], [SEP] or [PAD]."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        if not path.is_file():
            raise JudgeError(
                f"{path} is missing; expected the encoder's fast tokenizer: "
                "copy the tokenizer.json of the judge's repository there"
            )
        try:
            full = Tokenizer.from_file(str(path))
            plain = _without_control(json.loads(path.read_text(encoding="utf-8")))
        except Exception as problem:  # tokenizers has no class of its own for what it cannot read
            raise JudgeError(f"{path} is no tokenizer: {problem}; fetch it from the judge's repository again") from problem
        full.add_tokens([token for token in PREFIXES if full.token_to_id(token) is None])
        self.size: int = full.get_vocab_size(with_added_tokens=True)
        self.control = ControlTokens(*(_id_of(full, token, path) for token in ("[CLS]", "[SEP]", "[PAD]", *PREFIXES)))
        self._plain = Tokenizer.from_str(json.dumps(plain))

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without control tokens, whatever the text holds."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. `[SEP]` becomes a space first, as in llm-blender."""
        found = self._plain.encode_batch_fast([text.replace("[SEP]", " ") for text in texts], add_special_tokens=False)
        return [list(encoding.ids) for encoding in found]


def save_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer.json with the candidates' tokens in it, which by itself frames a text in [CLS] and [SEP], as DeBERTa's."""
    from tokenizers import Tokenizer, processors

    full = Tokenizer.from_file(str(source))
    full.add_tokens([token for token in PREFIXES if full.token_to_id(token) is None])
    framing = [(token, _id_of(full, token, source)) for token in ("[CLS]", "[SEP]")]
    full.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=framing)
    full.save(str(target))


def _id_of(tokenizer: Any, token: str, path: Path) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise JudgeError(f"{path} has no token {token!r}; expected a DeBERTa tokenizer with [CLS], [SEP] and [PAD]")
    return int(index)


def _without_control(description: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json under which no text can spell a control token: none is recognised, and their pieces cannot match."""
    names = (
        {token["content"] for token in description.get("added_tokens", [])}
        | set(PREFIXES)
        | {"[CLS]", "[SEP]", "[PAD]", "[MASK]"}
    )
    model = dict(description["model"])
    names.discard(model.get("unk_token"))  # found by its name in these models, and an unknown word in any case
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {_unspellable(piece, names): index for piece, index in vocabulary.items()}
    else:
        model["vocab"] = [[_unspellable(piece, names), score] for piece, score in vocabulary]
    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None, "model": model}
    return {**description, **plain}


def _unspellable(piece: str, names: set[str]) -> str:
    # a blank beside NUL: pre-tokenizers split or replace the one, normalizers drop the other
    return f"\0 control {piece} \0" if piece in names else piece


def join_pair(
    control: ControlTokens, limits: SegmentLimits, source: Sequence[int], first: Sequence[int], second: Sequence[int]
) -> PairEncoding:
    """One question from the ids of three texts, each cut to its limit."""
    ids = [control.cls, control.source, *source[: limits.source - 3], control.sep]
    most = limits.of_candidates(len(ids)) - 3
    positions = []
    for prefix, answer in ((control.candidate1, first), (control.candidate2, second)):
        positions.append(len(ids) + 1)
        ids += [control.cls, prefix, *answer[:most], control.sep]
    return PairEncoding(ids, 1, positions[0], positions[1])


def encode_pair(tokenizer: JudgeTokenizer, limits: SegmentLimits, prompt: str, first: str, second: str) -> PairEncoding:
    """One question from three texts."""
    source, left, right = tokenizer.encode_batch([prompt, first, second])
    return join_pair(tokenizer.control, limits, source, left, right)


def fill_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first; rows x longest stays within the budget, or the row is alone."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def fill_rows(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices in batches, longest first; a batch's tokens stay within the budget, or its row is alone."""
    batches: list[list[int]] = []
    left = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[index] > left:
            batches.append([])
            left = max(tokens_per_batch, lengths[index])
        batches[-1].append(index)
        left -= lengths[index]
    return batches


def pad_pairs(encodings: Sequence[PairEncoding], pad: int) -> PairBatch:
    """Questions as arrays."""
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = np.full((len(encodings), longest), pad, dtype=np.int64)  # (B, T)
    mask = np.zeros_like(ids)  # (B, T)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    positions = np.array([(one.source, one.candidate1, one.candidate2) for one in encodings], dtype=np.int64)  # (B, 3)
    return PairBatch(ids, mask, positions[:, 0], positions[:, 1], positions[:, 2])
