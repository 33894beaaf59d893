"""DeBERTa-v3's encoder for judging alone: questions one after the other in one matrix, no padding, only what a verdict needs.

The same numbers as `sppo.judges.encoder.encode`, which training differentiates, and with less work:

- rows are packed: projections see all tokens of a batch at once, attention each question at its own length;
- query, key and value are one product, and 1 / sqrt(3 D) is in its weights;
- keys and queries of relative positions depend on weights alone, so they are computed once a load;
- which relative position a pair of tokens has is looked up once a batch, for all layers and heads;
- the last layer computes the control tokens' states alone: nothing else is read of it;
- work space is allocated once, for asking the system for large blocks costs as much as the sums in them.

N tokens of a batch, T of a question, H width, A heads, D width of a head, R relative positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sppo.judges.encoder import EncoderShape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedLayer:
    """Weights of a layer as they are multiplied."""

    qkv: "torch.Tensor"  # (H, 3 H)
    qkv_bias: "torch.Tensor"  # (3 H,)
    far_key: "torch.Tensor"  # (A, D, R)
    far_query: "torch.Tensor"  # (A, D, R)
    mix: "torch.Tensor"  # (H, H)
    mix_bias: "torch.Tensor"
    mix_norm: Any
    wide: "torch.Tensor"  # (H, intermediate)
    wide_bias: "torch.Tensor"
    narrow: "torch.Tensor"  # (intermediate, H)
    narrow_bias: "torch.Tensor"
    narrow_norm: Any


@dataclass(frozen=True)
class Rows:
    """Where the questions of a batch lie among its tokens."""

    starts: list[int]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """N."""
        return sum(self.lengths)


class Attention(Protocol):
    """How attention is computed on a device."""

    def begin(self, rows: Rows) -> None:
        """A new batch: what all its layers share."""

    def mix(self, layer: PackedLayer, qkv: "torch.Tensor", mixed: "torch.Tensor") -> None:
        """Writes softmax(scores) @ value of qkv (N, 3 H) into mixed (N, H)."""

    def mix_some(self, layer: PackedLayer, qkv: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
        """softmax(scores) @ value of the wanted tokens alone, (W, H)."""


class Buffers:
    """Work space by name, grown and never given back."""

    def __init__(self, like: "torch.Tensor") -> None:
        self._like = like
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> "torch.Tensor":
        """An uninitialised tensor; the next of this name overwrites it."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = self._like.new_empty(size)
        return held[:size].view(shape)


class PackedEncoder:
    """A loaded encoder. Not for training: its work space is overwritten by every batch."""

    def __init__(self, encoder: "torch.nn.ModuleDict", shape: EncoderShape, attention: Attention) -> None:
        weights: Any = encoder
        stack = weights["encoder"]
        relative = stack["rel_embeddings"].weight  # (R, H)
        if "LayerNorm" in stack:
            relative = stack["LayerNorm"](relative)
        self.words = weights["embeddings"]["word_embeddings"].weight
        self.norm = weights["embeddings"]["LayerNorm"]
        self.layers = [_packed(layer, shape, relative) for layer in stack["layer"]]
        self.buffers = Buffers(self.words)
        self.attention = attention

    def encode(self, ids: "torch.Tensor", rows: Rows, wanted: "torch.Tensor") -> "torch.Tensor":
        """Last hidden states of the wanted tokens.

        ids: (N,), the questions one after the other; wanted: (W,) positions in ids, grouped by question in the rows' order, the
        same number for each; result: (W, H)."""
        import torch

        states = self.norm(torch.nn.functional.embedding(ids, self.words))  # (N, H)
        self.attention.begin(rows)
        *layers, last = self.layers
        for layer in layers:
            qkv = self._product("qkv", states, layer.qkv, layer.qkv_bias)  # (N, 3 H)
            mixed = self.buffers.take("mixed", *states.shape)  # (N, H)
            self.attention.mix(layer, qkv, mixed)
            states = self._after(layer, mixed, states)
        qkv = self._product("qkv", states, last.qkv, last.qkv_bias)
        return self._after(last, self.attention.mix_some(last, qkv, wanted), states[wanted])

    def _after(self, layer: PackedLayer, mixed: "torch.Tensor", states: "torch.Tensor") -> "torch.Tensor":
        import torch

        states = layer.mix_norm(self._product("out", mixed, layer.mix, layer.mix_bias).add_(states))
        wide = self._product("wide", states, layer.wide, layer.wide_bias)  # (N, intermediate)
        torch.ops.aten.gelu_(wide)
        found: torch.Tensor = layer.narrow_norm(self._product("out", wide, layer.narrow, layer.narrow_bias).add_(states))
        return found

    def _product(self, name: str, left: "torch.Tensor", right: "torch.Tensor", bias: "torch.Tensor") -> "torch.Tensor":
        import torch

        return torch.addmm(bias, left, right, out=self.buffers.take(name, len(left), right.shape[1]))


def _packed(layer: Any, shape: EncoderShape, relative: "torch.Tensor") -> PackedLayer:
    import torch

    part, heads = layer["attention"]["self"], shape.num_attention_heads
    scale = 1 / math.sqrt(3 * shape.hidden_size / heads)
    query, key, value = (part[name] for name in ("query_proj", "key_proj", "value_proj"))
    mix, narrow, wide = layer["attention"]["output"], layer["output"], layer["intermediate"]["dense"]

    def far(projection: Any) -> torch.Tensor:
        projected: torch.Tensor = projection(relative).unflatten(1, (heads, -1)).permute(1, 2, 0)  # (A, D, R)
        return projected

    return PackedLayer(
        qkv=torch.cat([query.weight * scale, key.weight, value.weight]).T,
        qkv_bias=torch.cat([query.bias * scale, key.bias, value.bias]),
        far_key=far(key).contiguous(),
        far_query=(far(query) * scale).contiguous(),
        mix=mix["dense"].weight.T,
        mix_bias=mix["dense"].bias,
        mix_norm=mix["LayerNorm"],
        wide=wide.weight.T,
        wide_bias=wide.bias,
        narrow=narrow["dense"].weight.T,
        narrow_bias=narrow["dense"].bias,
        narrow_norm=narrow["LayerNorm"],
    )


def pack(lengths: Sequence[int]) -> Rows:
    """Questions of these lengths, one after the other."""
    starts, position = [], 0
    for length in lengths:
        starts.append(position)
        position += length
    return Rows(starts, list(lengths))
