"""A policy on a packed micro-batch: hidden states of the whole row in one pass, then the fused head.

The policy's decoder runs as transformers wrote it, with our attention; its head does not run at all. DeepSpeed's engine holds
the module made here, so that under ZeRO-3 every weight, the head's too, is gathered while it is used.
"""

from typing import TYPE_CHECKING, Any

from sppo.errors import TrainError
from sppo.train.head import Objective, Projection, log_probs, loss_and_log_probs, token_log_probs
from sppo.train.packing import PackedBatch

if TYPE_CHECKING:
    import torch

RESCALED = ("logits_scaling", "logit_scale", "lm_head_multiplier", "logits_soft_cap")
"""Of a config.json: what some architectures do to their logits besides a final soft-cap."""


def packed_policy(policy: Any, tile_rows: int | None = None, device: str | None = None) -> "torch.nn.Module":
    """A module around a transformers model that was loaded with our attention; `policy` is its attribute of that name.

    Called with a PackedBatch: log-probs (B,). Called with a PackedBatch and an objective: the loss () and log-probs (B,). Its
    `token_log_probs` has those of the tokens, (T,) of each response; not for an engine, which gathers weights for calls alone.
    tile_rows: rows of the head's tiles, by their memory if left out. device: where it computes; weights may rest elsewhere.
    Raises TrainError for a head that is not one plain matrix, with or without a soft-cap."""
    import torch

    class ResponseHead(torch.nn.Module):
        """The policy's output embeddings. They are this module's own too: DeepSpeed gathers what a module owns."""

        def __init__(self, embeddings: Any, softcap: float | None) -> None:
            super().__init__()
            self.weight = embeddings.weight
            self.bias = getattr(embeddings, "bias", None)
            self.softcap = softcap

        def forward(self, hidden: torch.Tensor, packing: PackedBatch, objective: Objective | None) -> Any:
            if objective is None:
                return log_probs(self.projection, hidden, packing)
            return loss_and_log_probs(self.projection, hidden, packing, objective)

        @property
        def projection(self) -> Projection:
            return Projection(self.weight, self.bias, self.softcap, tile_rows)

    class PackedPolicy(torch.nn.Module):
        """The policy, and its head at work on responses alone."""

        def __init__(self) -> None:
            super().__init__()
            self.policy = policy
            self.response_head = ResponseHead(*_head_of(policy))

        def forward(self, packing: PackedBatch, objective: Objective | None = None) -> Any:
            return self.response_head(self.states(packing), packing, objective)

        def token_log_probs(self, packing: PackedBatch) -> list[torch.Tensor]:
            return token_log_probs(self.response_head.projection, self.states(packing), packing)

        def states(self, packing: PackedBatch) -> torch.Tensor:
            """(N, H) after the last norm."""
            here = device or self.response_head.weight.device
            states = self.policy.base_model(
                input_ids=torch.from_numpy(packing.token_ids).to(here).unsqueeze(0),
                position_ids=torch.from_numpy(packing.positions).to(here).unsqueeze(0),
                use_cache=False,
                packing=packing,
            )
            hidden: torch.Tensor = states.last_hidden_state[0]
            return hidden

    return PackedPolicy()


def _head_of(policy: Any) -> tuple[Any, float | None]:
    import torch

    embeddings = policy.get_output_embeddings()
    if not isinstance(embeddings, torch.nn.Linear):
        raise TrainError(
            f"the policy's output embeddings are {type(embeddings).__name__}; expected a torch.nn.Linear: leave lm_head out of "
            "what an adapter or a quantisation changes"
        )
    config = policy.config.get_text_config()
    rescaled = [name for name in RESCALED if getattr(config, name, None) not in (None, 1)]
    if rescaled:
        raise TrainError(
            f"the policy's config.json has {rescaled[0]} {getattr(config, rescaled[0])}; expected logits that are the output "
            "embeddings' own, or soft-capped by final_logit_softcapping: this architecture cannot be trained here"
        )
    return embeddings, getattr(config, "final_logit_softcapping", None)
