"""DeBERTa's attention on CUDA: FlexAttention over packed questions, relative positions looked up inside the kernel.

Exact: the score of query q for key k gets the same two numbers as in `sppo.judges.sliced`, from a (N, R) table of queries and
one of keys, before the softmax. No (T, T) scores are written to memory, and tiles between two questions are not visited.
N tokens of a batch, padded to a fixed number so that the kernel is compiled once; A heads, D width of a head, R positions.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sppo.judges.encoder import EncoderShape, relative_rows
from sppo.judges.packed import PackedLayer, Rows

if TYPE_CHECKING:
    import torch

TILE = 128
"""Tokens of a tile of scores that is visited or left out as a whole."""
STEP = 2048
"""Batches are filled up to a multiple of so many tokens, so that few sizes are compiled."""


class FlexAttention:
    """attend: torch's flex_attention, compiled unless another is given."""

    def __init__(
        self, shape: EncoderShape, attend: "Callable[..., Any] | None" = None, device: "torch.device | None" = None
    ) -> None:
        import torch
        from torch.nn.attention.flex_attention import flex_attention

        self.shape = shape
        self.attend = attend or torch.compile(flex_attention, dynamic=False)
        self.device = device or torch.device("cuda")
        self._tokens = 0  # N, never fewer than before: batches come longest first, and most are full
        self._batch: tuple[torch.Tensor, Any] | None = None

    def begin(self, rows: Rows) -> None:
        """The position of every distance, and the tiles that hold pairs of tokens of one question."""
        import torch

        self._tokens = max(self._tokens, -(-rows.tokens // STEP) * STEP)
        lengths = [*rows.lengths, self._tokens - rows.tokens] if self._tokens > rows.tokens else rows.lengths
        whole = Rows([*rows.starts, rows.tokens][: len(lengths)], lengths)  # what fills up is a question of its own
        apart = relative_rows(self.shape, self._tokens, self.device)  # (2N - 1,)
        numbers = torch.arange(len(lengths), device=self.device)
        question = torch.repeat_interleave(numbers, torch.tensor(lengths, device=self.device))  # (N,)
        self._batch = apart, tiles(whole, question)

    def mix(self, layer: PackedLayer, qkv: "torch.Tensor", mixed: "torch.Tensor") -> None:
        """Writes softmax(scores) @ value of qkv into mixed."""
        import torch

        if self._batch is None:
            raise RuntimeError("begin() was not called for this batch")
        apart, mask = self._batch
        heads, width, _ = layer.far_key.shape
        whole = torch.nn.functional.pad(qkv, (0, 0, 0, self._tokens - len(qkv)))  # (N, 3 H)
        query, key, value = whole.view(self._tokens, 3, heads, width).permute(1, 2, 0, 3)  # (A, N, D) each
        by_query, by_key = query @ layer.far_key, key @ layer.far_query  # (A, N, R) each
        last = self._tokens - 1

        def with_positions(
            score: "torch.Tensor", _: "torch.Tensor", head: "torch.Tensor", q: "torch.Tensor", k: "torch.Tensor"
        ) -> "torch.Tensor":
            near = apart[q - k + last]
            whole: torch.Tensor = score + by_query[head, q, near] + by_key[head, k, near]
            return whole

        found = self.attend(query[None], key[None], value[None], score_mod=with_positions, block_mask=mask, scale=1.0)
        mixed.view(len(qkv), heads, width).copy_(found[0, :, : len(qkv)].transpose(0, 1))

    def mix_some(self, layer: PackedLayer, qkv: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
        """softmax(scores) @ value of the wanted tokens, (W, H): all of them are computed, which is one kernel."""
        mixed = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        self.mix(layer, qkv, mixed)
        return mixed[wanted]


def tiles(rows: Rows, question: "torch.Tensor") -> Any:
    """The mask of a batch, from where its questions lie: building it from the mask alone would visit all N x N pairs.

    Query tile i needs the key tiles from the first token of its first question to the last of its last one."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    tokens = rows.tokens
    count = -(-tokens // TILE)
    starts = torch.tensor(rows.starts, device=question.device)
    ends = starts + torch.tensor(rows.lengths, device=question.device)
    heads = torch.arange(count, device=question.device) * TILE  # (tiles,) first token of each
    tails = (heads + TILE - 1).clamp(max=tokens - 1)
    first = starts[question[heads]] // TILE  # (tiles,)
    needed = (ends[question[tails]] - 1) // TILE - first + 1
    offsets = torch.arange(count, device=question.device)
    indices = (first[:, None] + offsets[None, :]).clamp(max=count - 1)  # (tiles, tiles); the first `needed` of a row count

    def same_question(_: Any, __: Any, q: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
        return question[q] == question[k]

    return BlockMask.from_kv_blocks(
        needed[None, None].int(),
        indices[None, None].int(),
        BLOCK_SIZE=TILE,
        mask_mod=same_question,
        seq_lengths=(tokens, tokens),
    )
