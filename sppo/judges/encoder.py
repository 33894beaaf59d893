"""DeBERTa-v3's encoder, as far as judging needs it. B rows, T tokens, A heads, D width of a head, R relative positions.

arXiv:2006.03654 and 2111.09543: the score of query q for key k sees what stands there and how far apart they are,

    (q_q . k_k  +  q_q . key(r[q-k])  +  k_k . query(r[q-k])) / sqrt(3 D),      r: one embedding for each bucket of distances

with the names, numbers and state dict of transformers' DebertaV2Model, which tests hold it to. Why not that class: importing it
costs each worker several seconds, and it multiplies with all 512 relative positions where a short question has a few dozen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sppo.errors import JudgeError

if TYPE_CHECKING:
    import torch

FIXED = {
    "hidden_act": "gelu",
    "relative_attention": True,
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "conv_kernel_size": 0,
}
"""What DeBERTa-v3, PairRM's encoder, has; DeBERTa-v2's other variants are refused."""
POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ASSUMED = {"hidden_act": "gelu", "type_vocab_size": 0, "conv_kernel_size": 0}
"""Of these, the ones a config.json may leave out."""


@dataclass(frozen=True)
class EncoderShape:
    """Fields of DebertaV2Config, under its names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-7
    initializer_range: float = 0.02
    position_buckets: int = -1
    max_relative_positions: int = -1
    max_position_embeddings: int = 512
    norm_rel_ebd: str = "none"

    @property
    def distances(self) -> int:
        """Distances told apart in each direction by position embeddings."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest

    @property
    def farthest(self) -> int:
        """Distance from which on all are one."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings


def encoder_shape(fields: Mapping[str, Any]) -> EncoderShape:
    """The shape in a DebertaV2Config's fields. Raises JudgeError for one that is missing, or that DeBERTa-v3 has otherwise."""
    for name, value in FIXED.items():
        found = fields.get(name, ASSUMED.get(name))
        if found != value:
            raise JudgeError(
                f"the judge's encoder has {name} {found!r}; expected {value!r}, as in DeBERTa-v3: choose a PairRM judge"
            )
    kinds = fields.get("pos_att_type")
    if sorted(kinds.split("|") if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []) != ["c2p", "p2c"]:
        raise JudgeError(f"the judge's encoder has pos_att_type {kinds!r}; expected p2c and c2p, as in DeBERTa-v3")
    known = {name: fields[name] for name in EncoderShape.__dataclass_fields__ if name in fields}
    try:
        shape = EncoderShape(**known)
    except TypeError as error:
        raise JudgeError(f"the judge's encoder lacks a field: {error}; expected a whole config.json of DeBERTa-v3") from error
    for name in POSITIVE:
        found = getattr(shape, name)
        if type(found) is not int or found < 1:
            raise JudgeError(f"the judge's encoder has {name} {found!r}; expected a whole number: fetch its config.json anew")
    if shape.hidden_size % shape.num_attention_heads:
        raise JudgeError(
            f"the judge's encoder has hidden_size {shape.hidden_size}, which does not divide into "
            f"{shape.num_attention_heads} heads; fetch the judge's config.json anew"
        )
    return shape


def build_encoder(shape: EncoderShape) -> "torch.nn.ModuleDict":
    """The encoder's parameters under DebertaV2Model's names, drawn as transformers draws them."""
    import torch
    from torch import nn

    width, inner, eps = shape.hidden_size, shape.intermediate_size, shape.layer_norm_eps

    def layer() -> nn.ModuleDict:
        projections = {name: nn.Linear(width, width) for name in ("query_proj", "key_proj", "value_proj")}
        after_attention = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)}
        return nn.ModuleDict(
            {
                "attention": nn.ModuleDict({"self": nn.ModuleDict(projections), "output": nn.ModuleDict(after_attention)}),
                "intermediate": nn.ModuleDict({"dense": nn.Linear(width, inner)}),
                "output": nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps)}),
            }
        )

    # not Embedding(..): drawing numbers on the meta device imports the compiler, 2 s of every load
    words = nn.Embedding.from_pretrained(torch.empty(shape.vocab_size, width), freeze=False, padding_idx=shape.pad_token_id)  # type: ignore[no-untyped-call]
    stack: dict[str, nn.Module] = {
        "layer": nn.ModuleList([layer() for _ in range(shape.num_hidden_layers)]),
        "rel_embeddings": nn.Embedding.from_pretrained(torch.empty(2 * shape.distances, width), freeze=False),  # type: ignore[no-untyped-call]
    }
    if "layer_norm" in shape.norm_rel_ebd:
        stack["LayerNorm"] = nn.LayerNorm(width, eps)
    embeddings = nn.ModuleDict({"word_embeddings": words, "LayerNorm": nn.LayerNorm(width, eps)})
    encoder = nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict(stack)})
    for module in () if words.weight.is_meta else encoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=shape.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return encoder


def relative_rows(shape: EncoderShape, tokens: int, device: "torch.device") -> "torch.Tensor":
    """Row of the relative embeddings for each distance q - k from 1 - T to T - 1, (2T - 1,), never falling: one for each near
    distance, far ones share theirs."""
    import torch

    apart = torch.arange(1 - tokens, tokens, device=device)  # (2T - 1,), query - key
    if shape.position_buckets > 0:
        half = shape.position_buckets // 2
        far = apart.abs().clamp(min=half).float()  # nearer ones are replaced below; this keeps the logarithm defined
        logarithm = torch.log(far / half) / torch.log(torch.tensor((shape.farthest - 1) / half)) * (half - 1)
        shared = (torch.ceil(logarithm) + half) * apart.sign()
        apart = torch.where(apart.abs() <= half, apart, shared.long())
    return (apart + shape.distances).clamp(0, 2 * shape.distances - 1)


def distance_buckets(shape: EncoderShape, tokens: int, device: "torch.device") -> "torch.Tensor":
    """Row of the relative embeddings for each query and key, (T, T)."""
    return relative_rows(shape, tokens, device).unfold(0, tokens, 1).flip(1)


def encode(encoder: "torch.nn.ModuleDict", shape: EncoderShape, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Last hidden states, (B, T, hidden_size); where mask (B, T) is 0 they mean nothing, and no other state sees them."""
    import torch

    weights: Any = encoder
    states: torch.Tensor
    drop = torch.nn.Dropout(shape.hidden_dropout_prob).train(encoder.training)
    states = drop(weights["embeddings"]["LayerNorm"](weights["embeddings"]["word_embeddings"](ids)) * mask.unsqueeze(-1))
    stack = weights["encoder"]
    rows = distance_buckets(shape, ids.shape[1], ids.device)  # (T, T)
    first, last = int(rows[0, -1]), int(rows[-1, 0])  # the farthest distances: other rows are not needed
    relative = stack["rel_embeddings"].weight
    if "LayerNorm" in stack:
        relative = stack["LayerNorm"](relative)
    relative = relative[first : last + 1]  # (R, hidden_size)
    hidden = torch.zeros(mask.shape, dtype=states.dtype, device=ids.device)  # (B, T)
    hidden = hidden.masked_fill(mask == 0, torch.finfo(states.dtype).min)[:, None, None, :]  # (B, 1, 1, T)
    for layer in stack["layer"]:
        mixed = _attention(layer["attention"]["self"], shape, states, drop(relative), rows - first, hidden, encoder.training)
        states = _add(layer["attention"]["output"], mixed, states, drop)
        wide = torch.nn.functional.gelu(layer["intermediate"]["dense"](states))  # (B, T, intermediate_size)
        states = _add(layer["output"], wide, states, drop)
    return states


def _add(part: Any, new: "torch.Tensor", states: "torch.Tensor", drop: Any) -> "torch.Tensor":
    added: torch.Tensor = part["LayerNorm"](drop(part["dense"](new)) + states)
    return added


def _attention(
    part: Any,
    shape: EncoderShape,
    states: "torch.Tensor",
    relative: "torch.Tensor",
    rows: "torch.Tensor",
    hidden: "torch.Tensor",
    training: bool,
) -> "torch.Tensor":
    import torch

    batch, tokens, width = states.shape
    heads = shape.num_attention_heads

    def split(rows_of: torch.Tensor) -> torch.Tensor:
        return rows_of.view(*rows_of.shape[:-1], heads, width // heads).transpose(-2, -3)  # (.., A, T or R, D)

    scale = math.sqrt(3 * width / heads)
    query, key, value = (split(part[name](states)) for name in ("query_proj", "key_proj", "value_proj"))  # (B, A, T, D) each
    query, key = query / math.sqrt(scale), key / math.sqrt(scale)
    far_query, far_key = (split(part[name](relative)) / math.sqrt(scale) for name in ("query_proj", "key_proj"))  # (A, R, D)
    places = rows.expand(batch, heads, tokens, tokens)
    content = query @ key.transpose(-1, -2)  # (B, A, T, T)
    to_position = (query @ far_key.transpose(-1, -2)).gather(-1, places)  # (B, A, T, T)
    from_position = (key @ far_query.transpose(-1, -2)).gather(-1, places.transpose(-1, -2)).transpose(-1, -2)
    weights = torch.softmax(content + to_position + from_position + hidden, dim=-1)
    weights = torch.nn.functional.dropout(weights, shape.attention_probs_dropout_prob, training)
    mixed: torch.Tensor = (weights @ value).transpose(1, 2).reshape(batch, tokens, width)
    return mixed
