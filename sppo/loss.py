"""The training losses by name, from log-ratios ell(y) = log pi_theta(y|x) - log pi_t(y|x). B responses of whole prompts.

    sppo  loss(y) = ( ell(y) - eta (P(y > pi_t | x) - 1/2) )^2

Every loss is a sum of terms of one response or of a prompt's best and worst; eta is 1/beta, and 1/tau of `ipo`. Log-probs are
sums over tokens. Functions take torch tensors or numpy arrays alike. One table of all: docs/algorithm.md.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import numpy as np
import numpy.typing as npt

from sppo.errors import TrainError
from sppo.recipe import Training

if TYPE_CHECKING:
    import torch

Values = TypeVar("Values", float, npt.NDArray[np.float64], "torch.Tensor")

EQUAL = 1e-6
"""Win probabilities no further apart are equal: such a pair has no winner for the losses with hard labels."""
HEAVIEST = 10.0
"""Limit of `rspo`'s importance weights mu / pi_t, which are ratios of whole sequences' probabilities."""


@dataclass(frozen=True)
class Labels:
    """What a loss may read of B responses besides their log-ratios. Arrays of the log-ratios' kind; a prompt's stand together
    in one call, for a pair is looked for there."""

    prompt: Any
    """(B,) integers, equal for responses of one prompt."""
    win_probability: Any
    """(B,) P(y > pi_t | x), in [0, 1]."""
    is_best: Any
    """(B,) bool, at most one a prompt."""
    is_worst: Any
    """(B,) bool, at most one a prompt."""
    gate: Any = None
    """(B,) in [0, 1], what `s_sppo` multiplies P - 1/2 by. Only read there."""
    pair_probability: Any = None
    """(B,) P(best > worst) of the prompt, in [0, 1]. Only read by `sppo_single`."""
    drift: Any = None
    """(B,) log pi_t(y|x) - log mu(y|x), in nats. Only read by `rspo`; without it mu is pi_t."""


def response_losses(training: Training, log_ratios: Values, labels: Labels) -> Values:
    """The loss of each response in the normalised form, which does not depend on eta at the start.

    log_ratios: (B,) in nats; result: (B,), dimensionless. A pair's loss (`dpo`, `ipo`) stands at the best's place, 0 at
    the worst's. A response that the loss does not read (`takes_part`) has loss 0 and gradient 0.
    Raises TrainError if a label is missing that the loss reads."""
    losses: Values = _losses(training, log_ratios, labels)
    return losses


def takes_part(training: Training, labels: Labels) -> Any:
    """(B,) bool, whether a loss reads the response.

    `dpo`, `ipo` and `sppo_single` read pairs: a prompt left with its best or its worst alone has none. `sppo_hard` reads
    each by itself. The hard labels of `dpo`, `ipo` and `sppo_hard` cannot say that two are equal: such a pair is left out."""
    everyone = labels.prompt == labels.prompt  # (B,)
    if training.loss in ("sppo", "s_sppo", "rspo"):
        return everyone
    extremes = labels.is_best | labels.is_worst  # (B,)
    paired = extremes & _has(labels, labels.is_best) & _has(labels, labels.is_worst)  # (B,)
    if training.loss == "sppo_single":
        return paired
    tied = paired & (abs(_difference(labels)) <= EQUAL)  # (B,)
    return (extremes if training.loss == "sppo_hard" else paired) & ~tied


def papers_scale(training: Training) -> float:
    """What turns the normalised loss into the paper's: eta^2 nats^2 for the squared ones, 1 for `dpo`.

    `sppo` starts an iteration at (eta (P - 1/2))^2 on that scale: 250,000 for hard labels at eta = 1000."""
    return 1.0 if training.loss == "dpo" else training.eta * training.eta


def sppo_loss(log_ratios: Values, win_probabilities: Values, eta: float) -> Values:
    """Squared error of each response in the normalised form, (beta log(pi_theta/pi_t) - (P - 1/2))^2 with beta = 1/eta.

    log_ratios: (B,) in nats, log-probs summed over tokens; win_probabilities: (B,) in [0, 1]; result: (B,), dimensionless.
    arXiv:2405.00675, Algorithm 1, divided by eta^2: the same optimum, and a value that does not depend on eta at the start.
    Raises TrainError unless eta is positive."""
    if not eta > 0:
        raise TrainError(f"eta is {eta}; expected a positive number: set training.eta in the recipe")
    losses: Values = _squared(log_ratios, win_probabilities - 0.5, eta)
    return losses


def _losses(training: Training, log_ratios: Any, labels: Labels) -> Any:
    eta = training.eta
    centred = labels.win_probability - 0.5  # (B,)
    match training.loss:
        case "sppo":
            return sppo_loss(log_ratios, labels.win_probability, eta)
        case "s_sppo":
            if labels.gate is None:
                raise TrainError("loss s_sppo needs a gate for each response and got none; expected sppo.train.gates' values")
            return _squared(log_ratios, labels.gate * centred, eta)
        case "sppo_single":
            if labels.pair_probability is None:
                raise TrainError("loss sppo_single needs P(best > worst) of each pair and got none; expected the targets' own")
            target = (labels.pair_probability - 0.5) * _sides(labels)  # (B,)
            return _kept(_squared(log_ratios, target, eta), takes_part(training, labels))
        case "sppo_hard":
            return _kept(_squared(log_ratios, 0.5 * _sides(labels), eta), takes_part(training, labels))
        case "dpo":
            margins = log_ratios - _of_worst(labels, log_ratios)  # (B,)
            return _kept(_softplus(-margins / eta), takes_part(training, labels) & labels.is_best)
        case "ipo":
            margins = log_ratios - _of_worst(labels, log_ratios)  # (B,)
            return _kept(_squared(margins, 0.5, eta), takes_part(training, labels) & labels.is_best)
        case "rspo":
            return _squared(log_ratios, centred, eta) + _regularisation(training, log_ratios, labels) / (eta * eta)
        case other:
            assert_never(other)


def _squared(log_ratios: Any, target: Any, eta: float) -> Any:
    error = log_ratios / eta - target
    return error * error


def _regularisation(training: Training, log_ratios: Any, labels: Labels) -> Any:
    """(B,) forward_kl KL(mu || pi_theta) + reverse_kl KL(pi_theta || mu), one term a response drawn from pi_t, in nats.

    Forward: (mu / pi_t) log(mu / pi_theta), importance sampling, the weight cut at HEAVIEST. Reverse: log(pi_theta / mu)^2 / 2,
    whose gradient under draws from pi_theta is the KL's; they come from pi_t instead, near it."""
    from_mu, weight = log_ratios, 1.0
    if labels.drift is not None:
        from_mu = log_ratios + labels.drift  # (B,) log(pi_theta / mu)
        weight = math.e ** (-labels.drift).clip(None, math.log(HEAVIEST))  # (B,) mu / pi_t
    return training.reverse_kl * from_mu * from_mu / 2 - training.forward_kl * weight * from_mu


def _sides(labels: Labels) -> Any:
    """(B,) 1 for the best, -1 for the worst, 0 for others."""
    return 1.0 * labels.is_best - 1.0 * labels.is_worst


def _difference(labels: Labels) -> Any:
    """(B,) P(best > pi_t) - P(worst > pi_t) of each response's prompt; 0 where it has no pair."""
    both = _has(labels, labels.is_best) & _has(labels, labels.is_worst)  # (B,)
    return _kept(_summed(labels, labels.win_probability * _sides(labels)), both)


def _of_worst(labels: Labels, values: Any) -> Any:
    """(B,) the value of the worst response of each one's prompt; 0 where there is none."""
    return _summed(labels, _kept(values, labels.is_worst))


def _has(labels: Labels, which: Any) -> Any:
    """(B,) whether each response's prompt has a response of these."""
    return _summed(labels, 1.0 * which) > 0


def _summed(labels: Labels, values: Any) -> Any:
    """(B,) the sum of a prompt's values, at each of its places."""
    same = labels.prompt[:, None] == labels.prompt[None, :]  # (B, B)
    return _kept(values[None, :], same).sum(1)


def _kept(values: Any, which: Any) -> Any:
    """The values where `which` is True, 0 elsewhere, with gradient 0 there."""
    if isinstance(values, np.ndarray):
        return np.where(which, values, 0.0)
    return values.where(which, values.new_zeros(()))


def _softplus(values: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    if isinstance(values, np.ndarray):
        return np.logaddexp(0.0, values)
    import torch

    return torch.nn.functional.softplus(values)
