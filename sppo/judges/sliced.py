"""DeBERTa's attention on CPU, a few heads of a question at a time. B of them, T tokens, D width of a head, R positions.

The scores of one head of a long question fill the cache of a core, so more of them at once would only be slower; short
questions of equal length are computed together.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sppo.judges.encoder import EncoderShape, relative_rows
from sppo.judges.kernel import PositionsKernel
from sppo.judges.packed import Buffers, PackedLayer, Rows

if TYPE_CHECKING:
    import torch

SCORES_AT_ONCE = 1 << 20
"""Attention scores computed together: 4 MB in fp32."""


@dataclass(frozen=True)
class Run:
    """Questions of equal length next to each other."""

    start: int
    questions: int
    tokens: int
    """T of each."""


@dataclass(frozen=True)
class Lookup:
    """Which relative position every pair of tokens has, in questions of T tokens."""

    apart: "torch.Tensor"
    """(2T - 1,) int32: the position of each distance q - k, from 1 - T on, counted from `first`."""
    first: int
    """The first position that occurs."""
    positions: int
    """R of them, from the first on."""
    by_query: "torch.Tensor | None"
    """(T * T,): of query q and key k, the place in a (T, R) table of queries and positions. None beside the kernel."""
    by_key: "torch.Tensor | None"
    """(T * T,): the same in a (R, T) table of positions and keys."""


def lookup_of(shape: EncoderShape, tokens: int, flat: bool) -> Lookup:
    """The lookup for questions of so many tokens; `flat` with the places of all pairs."""
    import torch

    rows = relative_rows(shape, tokens, torch.device("cpu")).int()  # (2T - 1,)
    first, positions = int(rows[0]), int(rows[-1] - rows[0]) + 1
    apart = rows - first
    if not flat:
        return Lookup(apart, first, positions, None, None)
    near = apart.unfold(0, tokens, 1).flip(1)  # (T, T): row q has the distances q, q - 1, .., q - T + 1
    number = torch.arange(tokens, dtype=torch.int32)
    by_query, by_key = number[:, None] * positions + near, near * tokens + number[None, :]
    return Lookup(apart, first, positions, by_query.flatten(), by_key.flatten())


def equal_runs(rows: Rows) -> list[Run]:
    """Runs of equally long questions, in order."""
    runs: list[Run] = []
    for start, tokens in zip(rows.starts, rows.lengths, strict=True):
        if runs and runs[-1].tokens == tokens:
            runs[-1] = Run(runs[-1].start, runs[-1].questions + 1, tokens)
        else:
            runs.append(Run(start, 1, tokens))
    return runs


class SlicedAttention:
    """Products with relative positions are taken once each, and looked up for every pair of tokens: by the kernel in one pass
    with the softmax, or without one by flat lookups that all heads and layers share."""

    def __init__(self, shape: EncoderShape, like: "torch.Tensor", kernel: PositionsKernel | None = None) -> None:
        import torch

        self.shape = shape
        self.kernel = kernel
        self.buffers = Buffers(like)
        self._scores_at_once = SCORES_AT_ONCE * torch.get_num_threads()
        self._rows = Rows([], [])
        self._runs: list[Run] = []
        self._lookups: dict[int, Lookup] = {}  # by T

    def begin(self, rows: Rows) -> None:
        """Runs of questions of equal length, and a lookup for each length."""
        self._rows, self._runs = rows, equal_runs(rows)
        held = self._lookups  # the batch before often ended with a length that this one begins with
        self._lookups = {
            run.tokens: held.get(run.tokens) or lookup_of(self.shape, run.tokens, self.kernel is None) for run in self._runs
        }

    def mix(self, layer: PackedLayer, qkv: "torch.Tensor", mixed: "torch.Tensor") -> None:
        """Writes softmax(scores) @ value of qkv (N, 3 H) into mixed (N, H)."""
        heads, width, _ = layer.far_key.shape
        for run in self._runs:
            lookup, tokens = self._lookups[run.tokens], run.tokens
            at_once = max(1, self._scores_at_once // (tokens * max(tokens, lookup.positions)))
            several, stop = max(1, at_once // heads) * tokens, run.start + run.questions * tokens
            for first in range(run.start, stop, several):
                last = min(first + several, stop)
                parts = qkv[first:last].view(-1, tokens, 3, heads, width).permute(2, 3, 0, 1, 4)  # (3, A, questions, T, D)
                out = mixed[first:last].view(-1, tokens, heads, width).permute(2, 0, 1, 3)  # (A, questions, T, D)
                for head in range(0, heads, at_once):
                    some = slice(head, head + at_once)
                    self._mix_heads(layer.far_key[some], layer.far_query[some], parts[:, some], out[some], lookup)

    def _mix_heads(
        self,
        far_key: "torch.Tensor",
        far_query: "torch.Tensor",
        parts: "torch.Tensor",
        out: "torch.Tensor",
        lookup: Lookup,
    ) -> None:
        _, heads, questions, tokens, width = parts.shape
        batch = heads * questions
        # value in one block: a product with rows far apart is slower than copying them
        query, key, value = (part.reshape(batch, tokens, width) for part in (parts[0], parts[1], parts[2].contiguous()))
        near = slice(lookup.first, lookup.first + lookup.positions)
        far_key, far_query = (_each(far[:, :, near], questions) for far in (far_key, far_query))  # (B, D, R) each
        by_query = self.buffers.take("by query", batch, tokens, lookup.positions)
        by_key = self.buffers.take("by key", batch, lookup.positions, tokens)
        scores = self.buffers.take("scores", batch, tokens, tokens)
        _multiply(query, far_key, by_query)
        _multiply(far_query.transpose(1, 2), key.transpose(1, 2), by_key)
        if self.kernel is not None:
            _multiply(query, key.transpose(1, 2), scores)
            self.kernel.softmax(scores, by_query, by_key, lookup.apart)
        else:
            self._softmax(scores, query, key, by_query, by_key, lookup)
        mixed = self.buffers.take("mixed", batch, tokens, width)
        _multiply(scores, value, mixed)
        out.copy_(mixed.view(out.shape))

    def _softmax(
        self,
        scores: "torch.Tensor",
        query: "torch.Tensor",
        key: "torch.Tensor",
        by_query: "torch.Tensor",
        by_key: "torch.Tensor",
        lookup: Lookup,
    ) -> None:
        """What the kernel does, with torch's own operators."""
        import torch

        added = self.buffers.take("added", *scores.shape)
        for table, index, found in ((by_query, lookup.by_query, scores), (by_key, lookup.by_key, added)):
            assert index is not None  # lookups are flat without a kernel
            for one, into in zip(table, found, strict=True):
                torch.index_select(one.view(-1), 0, index, out=into.view(-1))
        scores.add_(added)
        _multiply(query, key.transpose(1, 2), scores, add=True)
        torch.softmax(scores, -1, out=scores)

    def mix_some(self, layer: PackedLayer, qkv: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
        """softmax(scores) @ value of the wanted tokens, (W, H): scores have a row for each of them, and no others."""
        heads, width, _ = layer.far_key.shape
        each = len(wanted) // len(self._rows.lengths)
        mixed = qkv.new_empty(len(wanted), heads * width)
        for row, (start, tokens) in enumerate(zip(self._rows.starts, self._rows.lengths, strict=True)):
            asked = wanted[row * each : (row + 1) * each] - start  # (w,) within the question
            parts = qkv[start : start + tokens].view(tokens, 3, heads, width).permute(1, 2, 0, 3)  # (3, A, T, D)
            one = self._mix_asked(layer, parts, asked)  # (A, w, D)
            mixed[row * each : (row + 1) * each] = one.transpose(0, 1).flatten(1)
        return mixed

    def _mix_asked(self, layer: PackedLayer, parts: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        import torch

        heads, tokens = parts.shape[1:3]
        query, key, value = parts[0][:, asked], parts[1].transpose(1, 2), parts[2]  # (A, w, D), (A, D, T), (A, T, D)
        # row w has the distances q_w - k of every key k
        lookup = self._lookups[tokens]
        near = lookup.apart[asked[:, None] - torch.arange(tokens) + tokens - 1].long() + lookup.first  # (w, T)
        scores = query @ key + (query @ layer.far_key).gather(-1, near.expand(heads, -1, -1))  # (A, w, T)
        for place, positions in enumerate(near):
            scores[:, place] += (key * layer.far_query[:, :, positions]).sum(1)
        return torch.softmax(scores, -1) @ value


def _each(far: "torch.Tensor", questions: int) -> "torch.Tensor":
    """(heads, D, R) to one for each of heads x questions, heads first."""
    return far if questions == 1 else far.repeat_interleave(questions, 0)


def _multiply(left: "torch.Tensor", right: "torch.Tensor", out: "torch.Tensor", add: bool = False) -> None:
    """Products of B matrices into `out`, or added to it. One by one where they are few: batched products copy strided ones."""
    import torch

    if len(out) > 4:
        torch.baddbmm(out, left, right, out=out) if add else torch.bmm(left, right, out=out)
        return
    for one, other, found in zip(left, right, out, strict=True):
        found.addmm_(one, other) if add else torch.mm(one, other, out=found)
