"""Optimizer states in 8 bits: RMSprop and AdamW as torch has them, with a byte a moment. N elements of a tensor.

Block-wise quantisation (arXiv:2110.02861): 256 neighbouring values share an fp32 scale, their largest magnitude, and each is
one byte. Ours differs in the code and in the rounding. The code is logarithmic over five decades below the scale, so its
relative error is the same for small values and large ones: levels are 4.6 % apart for second moments (which are kept as their
roots), 9.6 % for signed first moments. Rounding is stochastic: an average that moves by 0.5 % a step would never leave its
level if it were rounded to the nearest. Its draws are seeded by step and tensor, so a repeated or resumed run is the same run.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK = 256
"""Values that share a scale."""
CHUNKS = {"cpu": BLOCK << 10, "cuda": BLOCK << 14}
"""Elements updated at once: few enough to stay in a processor's cache, enough for a GPU and some 300 MB at most."""
DECADES = 5
"""Of magnitudes below a block's scale that have levels of their own."""


def quantised(values: "torch.Tensor", signed: bool, draw: "torch.Generator") -> "tuple[torch.Tensor, torch.Tensor]":
    """Codes (N,) uint8 and scales (ceil(N / 256),) fp32 of fp32 values, each rounded to one of its two levels at random, so
    that its mean is the value. Code 0 is 0; a positive value below the lowest level is kept at it, for as a second moment of 0
    it would make the next step ten times too long."""
    import torch

    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)  # (blocks, 256)
    scales = blocks.abs().amax(dim=1)  # (blocks,)
    shares = blocks.abs() / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # (blocks, 256) in [0, 1]
    levels = _levels(signed, values.device)  # (top + 1,)
    top = len(levels) - 1
    places = shares.log2() * ((top - 1) / (DECADES * math.log2(10))) + top  # (blocks, 256), -inf of 0
    below = places.clamp_(0, top - 1).int()  # (blocks, 256)
    low, high = (levels.index_select(0, codes.view(-1)).view_as(shares) for codes in (below, below + 1))
    drawn = torch.rand(shares.shape, generator=draw, device=shares.device)
    codes = below + (drawn * (high - low) < shares - low)
    codes = codes * blocks.sign().int() + 128 if signed else codes.clamp_(min=1) * (shares > 0)
    return codes.to(torch.uint8).view(-1)[: len(values)].clone(), scales


def dequantised(codes: "torch.Tensor", scales: "torch.Tensor", signed: bool) -> "torch.Tensor":
    """(N,) fp32 values of codes and scales."""
    import torch

    levels = _levels(signed, codes.device)
    if signed:
        levels = torch.cat([levels.new_zeros(1), -levels[1:].flip(0), levels])  # (256,) of codes 0 (never), -127 .. 127
    return levels.index_select(0, codes.int()) * scales.repeat_interleave(BLOCK)[: len(codes)]


def _levels(signed: bool, device: "torch.device") -> "torch.Tensor":
    """The shares of the scale that codes stand for: 0, then 10^-5 to 1 in equal ratios; (128,) or (256,)."""
    import torch

    top = 127 if signed else 255
    return torch.cat([torch.zeros(1), torch.logspace(-DECADES, 0, top)]).to(device)


@dataclass(frozen=True)
class Rule:
    """How moments and a gradient become an update."""

    moments: dict[str, bool]
    """Their names, and whether they are signed."""
    update: "Callable[[list[torch.Tensor], torch.Tensor, int], torch.Tensor]"
    """(moments, gradient, step) to what is subtracted from the weights, over the learning rate; all (N,) fp32. Moments are
    updated in place."""


def _rmsprop(moments: "list[torch.Tensor]", gradient: "torch.Tensor", step: int) -> "torch.Tensor":
    [root] = moments
    root.square_().mul_(0.99).addcmul_(gradient, gradient, value=0.01).sqrt_()
    return gradient / (root + 1e-8)


def _adamw(moments: "list[torch.Tensor]", gradient: "torch.Tensor", step: int) -> "torch.Tensor":
    mean, root = moments
    mean.lerp_(gradient, 0.1)
    root.square_().mul_(0.999).addcmul_(gradient, gradient, value=0.001).sqrt_()
    corrected: torch.Tensor = mean / (1 - 0.9**step)
    return corrected / (root / math.sqrt(1 - 0.999**step) + 1e-8)


RMSPROP = Rule({"root_square": False}, _rmsprop)
"""torch's RMSprop: alpha 0.99, eps 1e-8, no momentum, no bias correction."""
ADAMW = Rule({"mean": True, "root_square": False}, _adamw)
"""torch's AdamW: betas 0.9 and 0.999, eps 1e-8, no weight decay."""


def optimizer(parameters: "Iterable[torch.nn.Parameter]", rate: float, rule: Rule) -> "torch.optim.Optimizer":
    """A torch optimizer whose states are bytes: a moment's codes are (N,) uint8 in its parameter's order, its scales fp32.

    Blocks follow the tensor that the optimizer is given, which under ZeRO is a rank's part of all weights: with other ranks
    other values share a scale and other draws round them, so results agree statistically, not digit by digit."""
    made: torch.optim.Optimizer = _optimizer_class()(parameters, rate, rule)
    return made


@functools.cache
def _optimizer_class() -> Any:
    import torch

    class EightBit(torch.optim.Optimizer):
        """torch's protocol around `_advance`."""

        def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, rule: Rule) -> None:
            super().__init__(parameters, {"lr": rate})
            self.rule = rule

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            """One update of all parameters that have a gradient."""
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for number, (group, parameter) in enumerate(self._parameters()):
                if parameter.grad is not None:
                    _advance(parameter, self.state[parameter], self.rule, group["lr"], number)
            return loss

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """As torch's, byte for byte: torch's own would turn codes and scales into the parameters' type."""
            super().load_state_dict(state_dict)
            numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
            for number, (_, parameter) in zip(numbers, self._parameters(), strict=True):
                if number in state_dict["state"]:
                    self.state[parameter] = {
                        name: value.to(parameter.device, copy=True) if torch.is_tensor(value) else deepcopy(value)
                        for name, value in state_dict["state"][number].items()
                    }

        def _parameters(self) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter]]:
            return ((group, parameter) for group in self.param_groups for parameter in group["params"])

    return EightBit


def _advance(parameter: "torch.nn.Parameter", state: dict[str, Any], rule: Rule, rate: float, number: int) -> None:
    """One update of a parameter, the optimizer's `number`-th, and of its state."""
    import torch

    if not state:
        state["step"] = 0
        for name, signed in rule.moments.items():
            zero = 128 if signed else 0
            state[name] = torch.full((parameter.numel(),), zero, dtype=torch.uint8, device=parameter.device)
            state[f"{name}_scale"] = torch.zeros(math.ceil(parameter.numel() / BLOCK), device=parameter.device)
    state["step"] += 1
    weights, gradient = parameter.detach().view(-1), parameter.grad.detach().reshape(-1)  # type: ignore[union-attr]
    draw = torch.Generator(parameter.device)
    draw.manual_seed((state["step"] << 20) + number)
    chunk = CHUNKS[parameter.device.type]
    for start in range(0, len(weights), chunk):
        part, blocks = slice(start, start + chunk), slice(start // BLOCK, (start + chunk) // BLOCK)
        moments = [
            dequantised(state[name][part], state[f"{name}_scale"][blocks], signed) for name, signed in rule.moments.items()
        ]
        update = rule.update(moments, gradient[part].float(), state["step"])
        weights[part] -= (rate * update).to(weights.dtype)
        for (name, signed), moment in zip(rule.moments.items(), moments, strict=True):
            state[name][part], state[f"{name}_scale"][blocks] = quantised(moment, signed, draw)
