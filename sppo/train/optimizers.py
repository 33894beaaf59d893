"""The optimizers by name: RMSprop and AdamW as torch has them, and both with states in 8 bits."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_never

from sppo.recipe import Training
from sppo.train import eight_bit

if TYPE_CHECKING:
    import torch


def optimizer_for(training: Training, parameters: "Iterable[torch.nn.Parameter]") -> "torch.optim.Optimizer":
    """RMSprop as the released code uses it (alpha 0.99, eps 1e-8, no bias correction), or AdamW without weight decay.

    Parameters that need no gradient, such as an adapter's base, are left out: nothing is kept for them."""
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rate = training.learning_rate
    match training.optimizer:
        case "rmsprop":
            return torch.optim.RMSprop(trained, lr=rate, alpha=0.99, eps=1e-8)
        case "adamw":
            return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        case "rmsprop_8bit":
            return eight_bit.optimizer(trained, rate, eight_bit.RMSPROP)
        case "adamw_8bit":
            return eight_bit.optimizer(trained, rate, eight_bit.ADAMW)
        case other:
            assert_never(other)


def state_bytes(training: Training) -> float:
    """Bytes of optimizer state a trained parameter: one moment of `rmsprop`, two of `adamw`.

    4 bytes each, or in 8 bits 1 byte and an fp32 scale for every 256."""
    moments = 1 if training.optimizer.startswith("rmsprop") else 2
    return moments * (1 + 4 / eight_bit.BLOCK if training.optimizer.endswith("_8bit") else 4.0)
