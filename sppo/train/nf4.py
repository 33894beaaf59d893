"""NF4, the 4-bit normal float of QLoRA (arXiv:2305.14314): weights in blocks of 64 that share a scale.

The 16 levels are quantiles of a normal distribution scaled to [-1, 1], more of them where more weights lie, with 0 among them;
a weight is the nearest level times its block's largest magnitude. Two codes are a byte, and the scale is fp32: 4.5 bits a
weight (the paper quantises the scales again and comes to 4.13).

The error of a weight is at most half the widest gap, 0.152 of its block's largest magnitude; of normal weights its root mean
square is 0.092 of the weights' own.
"""

import functools
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK = 64
"""Weights that share a scale."""
LARGEST_ERROR = 0.152
"""Of a weight, as a share of its block's largest magnitude."""
TAIL = (1 / 32 + 1 / 30) / 2
"""What is cut from each end of the normal distribution, so that its quantiles are finite."""


@functools.cache
def levels() -> tuple[float, ...]:
    """The 16 levels, rising: 7 below 0, 0, and 8 above; quantiles of N(0, 1) at equal steps on each side, over the largest."""
    above = [NormalDist().inv_cdf(0.5 + (0.5 - TAIL) * step / 8) for step in range(1, 9)]
    below = [NormalDist().inv_cdf(0.5 - (0.5 - TAIL) * step / 7) for step in range(7, 0, -1)]
    return tuple(value / above[-1] for value in (*below, 0.0, *above))


def packed(weights: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Codes, two a byte, (ceil(N / 2),) uint8, and scales, (ceil(N / 64),) fp32, of N weights of any shape."""
    import torch

    flat = weights.detach().reshape(-1).float()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)  # (blocks, 64)
    scales = blocks.abs().amax(dim=1)  # (blocks,)
    grid = torch.tensor(levels(), device=flat.device)  # (16,)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # (blocks, 64) in [-1, 1]
    codes = torch.bucketize(shares, (grid[1:] + grid[:-1]) / 2).to(torch.uint8).view(-1)  # (N padded,)
    return (codes[::2] << 4 | codes[1::2])[: -(-len(flat) // 2)].clone(), scales


def unpacked(codes: "torch.Tensor", scales: "torch.Tensor", shape: "torch.Size", dtype: "torch.dtype") -> "torch.Tensor":
    """The weights that codes and scales stand for."""
    import torch

    grid = torch.tensor(levels(), device=codes.device)  # (16,)
    both = torch.stack([codes >> 4, codes & 15], dim=1).view(-1)[: shape.numel()]  # (N,)
    values = grid.index_select(0, both.int()) * scales.repeat_interleave(BLOCK)[: shape.numel()]  # (N,)
    return values.view(shape).to(dtype)


def linear(inputs: "torch.Tensor", codes: "torch.Tensor", scales: "torch.Tensor", shape: "torch.Size") -> "torch.Tensor":
    """x W^T with W in 4 bits, shape (out, in); (..., in) to (..., out).

    W is unpacked for the forward pass and again for the backward pass, and never kept between them."""
    outputs: torch.Tensor = _function().apply(inputs, codes, scales, shape)
    return outputs


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class PackedLinear(torch.autograd.Function):
        """Only the codes are saved."""

        @staticmethod
        def forward(
            ctx: Any, inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size
        ) -> torch.Tensor:
            ctx.save_for_backward(codes, scales)
            ctx.shape = shape
            return torch.nn.functional.linear(inputs, unpacked(codes, scales, shape, inputs.dtype))

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
            codes, scales = ctx.saved_tensors
            return gradient @ unpacked(codes, scales, ctx.shape, gradient.dtype), None, None, None

    return PackedLinear
