"""FlexAttention over a packed row: who sees whom is a function of two places, and blocks in which nobody does are left out.

Compiled on CUDA; the same function runs uncompiled, slowly and exactly, on any device.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.train.packing import PackedBatch

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask


def places(packing: PackedBatch) -> npt.NDArray[np.int64]:
    """(3, N): of each token its prompt's number, its response's number in the row (0: the prompt itself) and its position."""
    found = np.zeros((3, packing.tokens), np.int64)
    found[2] = packing.positions
    number = 0
    for family, (prompt, responses) in enumerate(packing.families):
        for span in (prompt, *responses):
            found[0, span.start : span.end] = family
            if span is not prompt:
                number += 1
                found[1, span.start : span.end] = number
    return found


def attend(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    packing: PackedBatch,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> "torch.Tensor":
    """As in sppo.train.attention.Attend."""
    mixed: torch.Tensor = _kernel(query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=block_mask(packing, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2)


def _capped(softcap: float) -> Callable[..., "torch.Tensor"]:
    import torch

    def capped(score: "torch.Tensor", *_: "torch.Tensor") -> "torch.Tensor":
        return softcap * torch.tanh(score / softcap)

    return capped


def block_mask(packing: PackedBatch, window: int | None, device: "torch.device") -> "BlockMask":
    """Who sees whom, worked out once for all layers of a window."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    found = packing.cache.get((block_mask, window))
    if isinstance(found, BlockMask):
        return found
    family, response, position = torch.from_numpy(places(packing)).to(device)  # (N,) each

    def sees(batch: Any, head: Any, at: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
        related = (family[at] == family[other]) & ((response[other] == 0) | (response[at] == response[other]))
        distance = position[at] - position[other]
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        seen: torch.Tensor = related & near
        return seen

    made = create_block_mask(sees, None, None, packing.tokens, packing.tokens, device=device)
    packing.cache[block_mask, window] = made
    return made


@lru_cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    kernel: Callable[..., Any] = attend
    return kernel
