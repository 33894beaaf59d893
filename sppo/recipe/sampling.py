"""How responses are drawn."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo.configuration import Frozen

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Sampling(Frozen):
    """y_1..y_K ~ pi_t(.|x)."""

    responses: Positive
    """K for training, n for evaluation."""
    temperature: Annotated[float, Field(gt=0)]
    top_p: Share
    max_tokens: Positive
    """New tokens; a response that reaches it is marked `length`."""


class Generation(Sampling):
    """How training responses are drawn, and with which engine."""

    engine: Literal["auto", "vllm", "transformers"]
    """Two engines draw different samples, so the engine is part of the recipe. `auto` is decided once, when the run starts."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> "Generation":
        if self.responses < 2:
            raise ValueError("K = 1 leaves nothing to compare; expected at least 2 responses")
        return self
