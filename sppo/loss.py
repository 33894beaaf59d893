"""The SPPO objective: squared distance of a response's log-ratio from eta times its advantage over the policy.

    loss(y) = ( log pi_theta(y|x) - log pi_t(y|x) - eta (P(y > pi_t | x) - 1/2) )^2

Functions take torch tensors or numpy arrays of any one shape, usually (B,) for B responses.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from sppo.errors import TrainError

if TYPE_CHECKING:
    import torch

Values = TypeVar("Values", float, npt.NDArray[np.float64], "torch.Tensor")


def sppo_loss(log_ratios: Values, win_probabilities: Values, eta: float) -> Values:
    """Squared error of each response in the normalised form, (beta log(pi_theta/pi_t) - (P - 1/2))^2 with beta = 1/eta.

    log_ratios: (B,) in nats, log-probs summed over tokens; win_probabilities: (B,) in [0, 1]; result: (B,), dimensionless.
    arXiv:2405.00675, Algorithm 1, divided by eta^2: the same optimum, and a value that does not depend on eta at the start.
    Raises TrainError unless eta is positive."""
    if not eta > 0:
        raise TrainError(f"eta is {eta}; expected a positive number: set training.eta in the recipe")
    error = log_ratios / eta - (win_probabilities - 0.5)
    return error * error


def on_papers_scale(loss: Values, eta: float) -> Values:
    """The loss in nats^2 as the paper writes it: the normalised form times eta^2.

    At the start of an iteration this is (eta (P - 1/2))^2: 250,000 for hard labels at eta = 1000."""
    return loss * (eta * eta)
