"""How pi_{t+1} is trained: the loss by name, its step size, the optimizer, and whether all weights move or an adapter."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sppo.configuration import Frozen

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]

Loss = Literal["sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "rspo", "s_sppo"]
PAIR_LOSSES: tuple[Loss, ...] = ("sppo_single", "sppo_hard", "dpo", "ipo")
"""Losses that read the best and the worst response of a prompt and no other."""
LINEAR_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of attention and MLP, as Llama, Mistral and Gemma-2 name them."""


class NoAdapter(Frozen):
    """All weights are trained."""

    kind: Literal["none"]


class LowRank(Frozen):
    """W + (alpha / rank) B A: W stays, B and A are trained, and the sum is the next policy's W."""

    rank: Positive
    """r, the inner width of B A."""
    alpha: Annotated[float, Field(gt=0)]
    """The update is B A times alpha / rank."""
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_PROJECTIONS
    """Ends of the names of the linear layers that are adapted; each must be found. The output embedding never is."""

    @field_validator("modules")
    @classmethod
    def _are_names(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        for name in modules:
            if not name.strip(".").strip():
                raise ValueError(f"holds {name!r}; expected ends of module names, such as q_proj or mlp.down_proj")
        if len(set(modules)) != len(modules):
            raise ValueError(f"{list(modules)} names a module twice; expected each once")
        return modules


class LoraAdapter(LowRank):
    """Low-rank adaptation (arXiv:2106.09685)."""

    kind: Literal["lora"]


class QloraAdapter(LowRank):
    """LoRA on a base held in 4 bits, NF4 in blocks of 64 (arXiv:2305.14314); the update is added to the fp32 weights."""

    kind: Literal["qlora"]


Adapter = Annotated[NoAdapter | LoraAdapter | QloraAdapter, Field(discriminator="kind")]


class Training(Frozen):
    """pi_{t+1} = argmin E (log pi_theta/pi_t - eta (P - 1/2))^2, or another loss by name."""

    loss: Loss
    """`sppo_single`, `sppo_hard`, `dpo` and `ipo` need `selection.responses: extremes`. Formulas: docs/algorithm.md."""
    eta: Annotated[float, Field(gt=0)]
    """1/beta, and 1/tau for `ipo`; the paper's eta."""
    forward_kl: Weight = 0
    """Only `rspo`: lambda of KL(mu || pi_theta), in nats^2 of loss a nat."""
    reverse_kl: Weight = 0
    """Only `rspo`: lambda of KL(pi_theta || mu), in nats^2 of loss a nat."""
    gate_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Only `s_sppo`: similarity from which targets are drawn to 0, which they reach at 1."""
    learning_rate: Annotated[float, Field(gt=0)]
    optimizer: Literal["rmsprop", "adamw", "rmsprop_8bit", "adamw_8bit"]
    """`_8bit`: the same with states in 8 bits, in blocks of 256 with a scale each (arXiv:2110.02861)."""
    schedule: Literal["linear", "constant"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Of the schedule's steps."""
    schedule_epochs: Positive
    """Length of the learning-rate schedule."""
    stop_epochs: Positive
    """Where training stops; the published Mistral stopped at 1 of 18."""
    global_batch: Positive
    """Prompts a step, over all devices and accumulation steps."""
    max_tokens: Positive
    """Of prompt and response together; a longer response is cut there and gets no EOS."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    reference: Literal["recompute", "sampler"] = "recompute"
    """Where log pi_t comes from: a forward pass before the first update, or the log-probs that generation stored."""
    reference_audit: Positive = 64
    """Only `sampler`: responses whose log pi_t is computed again, drawn by the recipe's seed."""
    reference_tolerance: Annotated[float, Field(gt=0)] = 1.0
    """Only `sampler`: nats that any audited response's log pi_t may differ by, summed over its tokens."""
    adapter: Adapter = NoAdapter(kind="none")
    other_layout: Literal["iteration_start", "last_weights"] = "iteration_start"
    """Where training goes on from if another number of ranks or ZeRO stage wrote its checkpoint. `last_weights` keeps what was
    learned and begins with a new optimizer; checkpoints then hold the fp32 weights besides."""

    @model_validator(mode="after")
    def _stops_within_its_schedule(self) -> Self:
        if self.stop_epochs > self.schedule_epochs:
            raise ValueError(
                f"stop_epochs {self.stop_epochs} is past schedule_epochs {self.schedule_epochs}; "
                "the learning rate would be negative: raise schedule_epochs"
            )
        return self

    @model_validator(mode="after")
    def _weights_what_its_loss_reads(self) -> Self:
        regularised = self.forward_kl > 0 or self.reverse_kl > 0
        if self.loss == "rspo" and not regularised:
            raise ValueError("loss rspo has forward_kl 0 and reverse_kl 0, which is loss sppo; expected one of them above 0")
        if self.loss != "rspo" and regularised:
            raise ValueError(
                f"forward_kl {self.forward_kl:g} and reverse_kl {self.reverse_kl:g} are only read by loss rspo, and loss is "
                f"{self.loss}; set them to 0 or loss to rspo"
            )
        default = type(self).model_fields["gate_from"].default
        if self.loss != "s_sppo" and self.gate_from != default:
            raise ValueError(f"gate_from {self.gate_from:g} is only read by loss s_sppo, and loss is {self.loss}; leave it out")
        return self

    @model_validator(mode="after")
    def _has_one_base(self) -> Self:
        if self.adapter.kind == "qlora" and self.reference == "sampler":
            raise ValueError(
                "reference sampler is log pi_t of the weights that generation used, and adapter qlora trains on a 4-bit copy "
                "of them; log-ratios would not start at 0: set reference to recompute or adapter.kind to lora"
            )
        return self
