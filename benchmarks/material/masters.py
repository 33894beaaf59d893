"""fp32 master weights behind bf16 ones, in one process: what DeepSpeed keeps for the stage, where it is not installed."""

from collections.abc import Callable, Iterable

import torch


class Masters:
    """RMSprop on fp32 copies of some weights. A gradient is added to its fp32 sum as soon as backward has it, then dropped.

    fp32 weights are their own masters."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], learning_rate: float, max_grad_norm: float = 1.0) -> None:
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.max_grad_norm = max_grad_norm
        self.masters: list[torch.Tensor] = list(self.weights)
        for place, weight in enumerate(self.weights):
            if weight.dtype != torch.float32:
                self.masters[place] = weight.detach().float()
                weight.register_post_accumulate_grad_hook(self._adds_to(place))
        self.optimizer = torch.optim.RMSprop(self.masters, lr=learning_rate)

    def _adds_to(self, place: int) -> Callable[[torch.Tensor], None]:
        def add(weight: torch.Tensor) -> None:
            master, gradient = self.masters[place], weight.grad
            if gradient is not None:
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

        return add

    def step(self) -> None:
        """Clip, step, and hand the new values to the weights."""
        torch.nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                if master is not weight:
                    weight.copy_(master)
