"""Useful FLOPs of a training step: the work that the loss needs, whoever does it and however.

    forward   2 x layer weights x tokens
            + 4 x heads x head width x pairs, summed over layers
            + 2 x hidden x vocabulary x response tokens
    training  3 x forward: the backward pass multiplies twice what the forward pass does once

Tokens count each prompt once, however many responses follow it, and no padding; pairs are (query, key) that a causal mask and
a sliding window leave; the head counts at response positions only. Not counted: a reference model, recomputed activations,
norms, activation functions, softmax, the optimizer. *Useful MFU* is these FLOPs by seconds, over the devices' peak: padding,
recomputation and waiting lower it, and nothing raises it but speed.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Literal

from sppo.recipe import Adapter, NoAdapter
from sppo.train.shape import ModelShape

Lengths = tuple[int, Sequence[int]]
"""Tokens of a prompt, and of each of its responses."""
FULL = NoAdapter(kind="none")


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of one sequence: each token sees itself and those before it, `window` in all at most."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def shared_pairs(lengths: Lengths, window: int | None = None) -> int:
    """Pairs of a prompt and its responses, each of which sees the prompt and itself.

    The prompt's triangle, and for each response the rectangle with the prompt and a triangle of its own; a window clips all
    of them as if the response were the only one."""
    prompt, responses = lengths
    before = causal_pairs(prompt, window)
    return before + sum(causal_pairs(prompt + response, window) - before for response in responses)


def forward_flops(shape: ModelShape, prompts: Iterable[Lengths]) -> float:
    """Of log pi(y|x) for every response of some prompts."""
    weights, attention, head = _forward(shape, list(prompts))
    return weights + attention + head


def training_flops(shape: ModelShape, prompts: Iterable[Lengths], adapter: Adapter = FULL) -> float:
    """Of a step on some prompts: forward and backward.

    With an adapter, the weights below it and the head are frozen: their backward pass only hands the gradient on, once instead
    of twice the forward work. Attention has no weights and is what it was; the adapter's own are a few more."""
    lengths = list(prompts)
    weights, attention, head = _forward(shape, lengths)
    if adapter.kind == "none":
        return 3 * (weights + attention + head)
    thin = 2 * shape.adapter_parameters(adapter.rank, adapter.modules) * stored_tokens(lengths)
    return 2 * (weights + head) + 3 * (attention + thin)


def stored_tokens(prompts: Iterable[Lengths]) -> int:
    """Tokens that go through the layers: each prompt once, and its responses."""
    return sum(prompt + sum(responses) for prompt, responses in prompts)


def _forward(shape: ModelShape, prompts: Sequence[Lengths]) -> tuple[float, float, float]:
    """(the layers' matrices, attention, the head)."""
    pairs = {
        window: sum(shared_pairs(lengths, window) for lengths in prompts) * shape.windows.count(window)
        for window in set(shape.windows)
    }
    responses = sum(sum(lengths) for _, lengths in prompts)
    return (
        2.0 * shape.layer_weights * stored_tokens(prompts),
        4.0 * shape.queries * sum(pairs.values()),
        2.0 * shape.embedding * responses,
    )


def useful_mfu(flops: float, seconds: float, devices: int, peak: float) -> float:
    """Share of the devices' peak that was useful work, 0 to 1. flops: of a step; peak: FLOP/s of one device."""
    return flops / (seconds * devices * peak)


def measured_peak(dtype: Literal["float32", "bfloat16"], seconds: float = 0.3) -> float:
    """FLOP/s of this process's CPU threads, by square matrix multiplications: a CPU's maker names no such number.

    The best of several: whatever else runs on the machine only lowers it."""
    import torch

    size = 1024
    one = torch.ones(size, size, dtype=getattr(torch, dtype))  # (size, size)
    best, until = float("inf"), time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < until:
        started = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
