"""The loss of a step as the fused head asks for it: whole prompts at a time, from their responses' log-probs. B responses."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.loss import Labels, papers_scale, response_losses
from sppo.recipe import Training
from sppo.train.head import Objective

if TYPE_CHECKING:
    import torch


def step_scale(training: Training, responses: int, world_size: int) -> float:
    """What a response's normalised loss is multiplied by before it is differentiated.

    The sum of a step is then the mean over the `responses` of the global batch, whoever computes them when. The paper's loss is
    differentiated, so that max_grad_norm clips what the released code clips. DeepSpeed averages gradients over ranks: times
    their number, it is the sum."""
    return papers_scale(training) * world_size / responses


def objective_of(
    training: Training, labels: Labels, reference: npt.NDArray[np.float64], scale: float, device: str
) -> Objective:
    """The losses of some of a micro-batch's responses, times scale.

    labels: numpy, of its B responses; reference: (B,) log pi_t(y|x) in nats. fp64: it is a difference of large sums."""
    here = Labels(**{field.name: _tensor(getattr(labels, field.name), device) for field in fields(Labels)})
    before = _tensor(reference, device)  # (B,)

    def objective(log_probs: "torch.Tensor", responses: slice) -> "torch.Tensor":
        log_ratios = log_probs - before[responses]  # (b,)
        losses: torch.Tensor = response_losses(training, log_ratios, part(here, responses)) * scale
        return losses

    return objective


def part(labels: Labels, responses: slice) -> Labels:
    """The labels of some of the responses."""
    values = {field.name: getattr(labels, field.name) for field in fields(Labels)}
    return Labels(**{name: None if each is None else each[responses] for name, each in values.items()})


def _tensor(values: Any, device: str) -> Any:
    import torch

    return None if values is None else torch.from_numpy(values).to(device)
