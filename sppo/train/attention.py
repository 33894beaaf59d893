"""Attention of a packed row: a prompt's tokens see the prompt so far; a response's see its whole prompt and themselves so far.

One function, registered under a name of our own through transformers' AttentionInterface, so that any architecture that asks
the interface can be trained in packed rows. No mask is built: the row's layout comes along with the keyword `packing`. What the
layers differ in (window, soft-cap, scaling) comes with each call. H query heads, G key heads, N tokens, D width of a head.

| device | computed by |
|---|---|
| CPU | scaled_dot_product_attention, segment by segment, in 16 bit with a gradient of our own; soft-capped: written out |
| CUDA, 16 bit | FlashAttention, variable length (`attention_varlen`): the flash-attn package, or torch's own without soft-cap |
| CUDA, otherwise | FlexAttention (`attention_flex`) |
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from sppo.errors import TrainError
from sppo.train.packing import PackedBatch

if TYPE_CHECKING:
    import torch

NAME = "sppo_packed"
REFUSED = ("s_aux", "position_bias", "cache")
"""Keywords of architectures whose scores are computed in yet another way."""


class Attend(Protocol):
    """One way to compute it. query: (1, H, N, D); key, value: (1, G, N, D); result: (1, N, H, D).

    A window that no sequence of the row is longer than is None."""

    def __call__(
        self,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        packing: PackedBatch,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> "torch.Tensor": ...


def register() -> str:
    """Make the attention known to transformers; its name, for `attn_implementation`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    return NAME


def packed_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packing: PackedBatch | None = None,
    **others: Any,
) -> tuple["torch.Tensor", None]:
    """What transformers calls in each layer; shapes as in Attend, window: query position - key position < window.

    Raises TrainError for an architecture that keeps the row's layout to itself or computes its scores differently."""
    name = type(module).__name__
    if packing is None:
        raise TrainError(
            f"{name} was called without the layout of its packed row; expected its model to hand the keyword `packing` on: "
            "this architecture cannot be trained with this version of transformers"
        )
    odd = [word for word in REFUSED if others.get(word) is not None]
    if odd or dropout or attention_mask is not None:
        found = odd[0] if odd else "dropout" if dropout else "attention_mask"
        raise TrainError(f"{name} asks for {found} in its attention; expected none: this architecture cannot be trained here")
    if sliding_window is not None and packing.longest <= sliding_window:
        sliding_window = None
    query, key, value = _as_autocast(query, key, value)
    attend = attention_for(query, softcap)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, packing, scaling, sliding_window, softcap), None


def _as_autocast(*tensors: "torch.Tensor") -> Iterator["torch.Tensor"]:
    """Under autocast what its products would turn them into, here once and not segment by segment."""
    import torch

    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return iter(tensors)
    return (each.to(torch.get_autocast_dtype(device)) for each in tensors)


def attention_for(query: "torch.Tensor", softcap: float | None) -> Attend:
    """The fastest way that this device has for these queries."""
    if not query.is_cuda:
        return attend_in_segments
    from sppo.train import attention_flex, attention_varlen

    varlen = attention_varlen.kernel_for(query, softcap)
    return attention_flex.attend if varlen is None else varlen


def attend_in_segments(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    packing: PackedBatch,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> "torch.Tensor":
    """Each prompt and each response by itself, on any device."""
    import torch

    key, value = (_of_every_head(each, query.shape[1]) for each in (key, value))  # (1, H, N, D)
    sizes = [span.length for prompt, responses in packing.families for span in (prompt, *responses)]
    # Split and joined as a whole: a slice's gradient would be a row of zeros around it, one for each segment.
    queries, keys, values = (iter(torch.split(each, sizes, 2)) for each in (query, key, value))
    found = []

    def attend(keys: "torch.Tensor", values: "torch.Tensor", length: int, seen: int) -> None:
        mask = _mask(packing, length, seen, window, query.device)
        result = _attend(next(queries), keys, values, mask, scaling, softcap)  # (1, H, T, D)
        found.append(result.transpose(1, 2))

    for prompt, responses in packing.families:
        prompt_keys, prompt_values = next(keys), next(values)
        attend(prompt_keys, prompt_values, prompt.length, 0)
        seen = prompt.length if window is None else min(prompt.length, window - 1)  # by a response's first token
        near = slice(prompt.length - seen, None)
        shared = ((prompt_keys, keys), (prompt_values, values))
        for response in responses:
            seen_keys, seen_values = (torch.cat([of_prompt[:, :, near], next(own)], 2) for of_prompt, own in shared)
            attend(seen_keys, seen_values, response.length, seen)
    return torch.cat(found, 1)


def _of_every_head(each: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Keys or values repeated for the queries of their group."""
    groups = each.shape[1]
    return each if groups == heads else each.repeat_interleave(heads // groups, 1)


def _mask(packing: PackedBatch, length: int, seen: int, window: int | None, device: Any) -> "torch.Tensor | None":
    """(T, seen + T), True where a query sees a key; None where causal alone says it. Shared by the layers."""
    import torch

    if not seen and (window is None or length <= window):
        return None
    found: Any = packing.cache.get(name := ("mask", length, seen, window))
    if found is None:
        found = torch.ones(length, seen + length, dtype=torch.bool, device=device).tril(seen)
        if window is not None:
            found = found.triu(seen - window + 1)
        packing.cache[name] = found
    mask: torch.Tensor = found
    return mask


def _attend(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    mask: "torch.Tensor | None",
    scaling: float,
    softcap: float | None,
) -> "torch.Tensor":
    """softmax(scores) @ value. query: (1, H, T, D); key, value: (1, H, S, D); without a mask T = S, causal."""
    import torch

    if softcap is None and query.dtype in (torch.bfloat16, torch.float16) and query.device.type == "cpu":
        found: torch.Tensor = _with_own_gradient().apply(query, key, value, mask, scaling)
        return found
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) * softcap  # (1, H, T, S)
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    at_least_32_bit = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, -1, dtype=at_least_32_bit).to(value.dtype) @ value


@lru_cache
def _with_own_gradient() -> Any:
    import torch

    class Attention(torch.autograd.Function):
        """torch's attention, with a backward pass of whole products: torch's own of 16 bit takes a CPU twice as long."""

        @staticmethod
        def forward(
            ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
        ) -> torch.Tensor:
            ctx.save_for_backward(query, key, value, mask)
            ctx.scaling = scaling
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
            )

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            query, key, value, mask = ctx.saved_tensors
            query, key, value, slope = (each[0] for each in (query, key, value, slope))  # (H, T or S, D)
            if mask is None:
                mask = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril()  # (T, S)
            hidden = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))  # (T, S)
            scaled = query * ctx.scaling
            scores = torch.baddbmm(hidden.expand(len(query), -1, -1), scaled, key.transpose(1, 2))  # (H, T, S)
            weights = torch.softmax(scores, -1)  # (H, T, S)
            of_value = weights.transpose(1, 2) @ slope
            of_scores = torch._softmax_backward_data(slope @ value.transpose(1, 2), weights, -1, weights.dtype)  # (H, T, S)
            of_query, of_key = (of_scores @ key).mul_(ctx.scaling), of_scores.transpose(1, 2) @ scaled
            return of_query.unsqueeze(0), of_key.unsqueeze(0), of_value.unsqueeze(0), None, None

    return Attention
