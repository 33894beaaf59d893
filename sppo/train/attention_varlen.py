"""FlashAttention of variable lengths over a packed row: queries of a prompt or a response, keys of all that it sees.

A segment's queries lie next to each other in the row already. Its keys are gathered: a prompt's own, or the prompt's and then
the response's. FlashAttention aligns its causal mask with the last key, so both kinds are one call. M gathered keys,
S segments.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.train.attention import Attend
from sppo.train.packing import PackedBatch

if TYPE_CHECKING:
    import torch

WIDEST_HEAD = 256


@dataclass(frozen=True)
class Gathered:
    """Which keys stand where for each segment of a row."""

    keys: npt.NDArray[np.int64]
    """(M,), places in the row."""
    query_ends: npt.NDArray[np.int32]
    """(S + 1,), cumulative lengths, from 0."""
    key_ends: npt.NDArray[np.int32]
    """(S + 1,)."""
    most_queries: int
    most_keys: int


def gather(packing: PackedBatch) -> Gathered:
    """The prompts and responses of a row in its order, as variable-length attention takes them."""
    keys, queries_each, keys_each = [], [], []
    for prompt, responses in packing.families:
        of_prompt = np.arange(prompt.start, prompt.end)
        for span in (prompt, *responses):
            seen = of_prompt if span is prompt else np.concatenate([of_prompt, np.arange(span.start, span.end)])
            keys.append(seen)
            queries_each.append(span.length)
            keys_each.append(len(seen))
    ends = [np.cumsum([0, *each], dtype=np.int32) for each in (queries_each, keys_each)]
    return Gathered(np.concatenate(keys), ends[0], ends[1], max(queries_each), max(keys_each))


def kernel_for(query: "torch.Tensor", softcap: float | None) -> Attend | None:
    """The kernel that can do this; None if there is none: 32-bit numbers, wide heads, or soft-cap without flash-attn."""
    import torch

    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] > WIDEST_HEAD:
        return None
    if flash_attn_is_there():
        return _attend_with_package
    return _attend_with_torch if softcap is None else None


@lru_cache
def flash_attn_is_there() -> bool:
    """Whether the flash-attn package is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def _attend_with_package(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    packing: PackedBatch,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> "torch.Tensor":
    from flash_attn import flash_attn_varlen_func

    gathered, keys, query_ends, key_ends = _on_device(packing, query.device)
    mixed: torch.Tensor = flash_attn_varlen_func(
        query[0].transpose(0, 1),  # (N, H, D)
        key[0].transpose(0, 1)[keys],  # (M, G, D)
        value[0].transpose(0, 1)[keys],
        query_ends,
        key_ends,
        gathered.most_queries,
        gathered.most_keys,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
    )
    return mixed.unsqueeze(0)


def _attend_with_torch(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    packing: PackedBatch,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> "torch.Tensor":
    from torch.nn.attention.varlen import varlen_attn

    gathered, keys, query_ends, key_ends = _on_device(packing, query.device)
    mixed = varlen_attn(
        query[0].transpose(0, 1),  # (N, H, D)
        key[0].transpose(0, 1)[keys],  # (M, G, D)
        value[0].transpose(0, 1)[keys],
        query_ends,
        key_ends,
        gathered.most_queries,
        gathered.most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(mixed, type(query))  # no auxiliary output was asked for
    return mixed.unsqueeze(0)


def _on_device(packing: PackedBatch, device: "torch.device") -> tuple[Gathered, "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """The row's layout and its arrays on the device, worked out once for all layers."""
    import torch

    found: Any = packing.cache.get(gather)
    if found is None:
        gathered = gather(packing)
        arrays = (gathered.keys, gathered.query_ends, gathered.key_ends)
        found = packing.cache[gather] = (gathered, *(torch.from_numpy(array).to(device) for array in arrays))
    on_device: tuple[Gathered, torch.Tensor, torch.Tensor, torch.Tensor] = found
    return on_device
