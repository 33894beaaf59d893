"""Sampling engines behind one protocol: vLLM, and transformers where vLLM is not installed.

Both draw y_1..y_K ~ pi(.|x) from token ids and return token ids with the policy's own log-probs; nothing is rendered here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, assert_never

from sppo.configuration import Frozen

__all__ = ["Engine", "EngineSettings", "Request", "Sample", "load"]


@dataclass(frozen=True)
class Request:
    """K responses wanted to one prompt."""

    draw: int
    """Which of several sets of prompts, for the caller."""
    position: int
    """Of the prompt in its set."""
    token_ids: list[int]
    """The rendered prompt."""
    seed: int
    """Of the prompt's draw; response k is drawn with seed + k, whatever else is in the batch."""
    responses: int
    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Sample:
    """One response as ids."""

    token_ids: list[int]
    """The stop token included, if one was sampled."""
    logprobs: list[float]
    """Of each id in nats, before temperature and top-p."""


class EngineSettings(Frozen):
    """What an engine needs to know, beside its requests."""

    engine: Literal["vllm", "transformers"]
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    stop_token_ids: tuple[int, ...]
    max_model_len: int
    """Tokens of the longest prompt and response together."""
    max_concurrent: int
    """Sequences in flight."""
    tensor_parallel: int
    memory_share: float
    kv_cache_mib: int | None


class Engine(Protocol):
    """A loaded policy that answers prompts."""

    def answer(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        """Each request with its K samples, as they finish. Requests are taken as room for them comes free."""


def load(folder: Path, settings: EngineSettings) -> Engine:
    """Load a policy folder into the engine that the settings name."""
    match settings.engine:
        case "vllm":
            from sppo.engines.vllm_engine import VllmEngine

            return VllmEngine(folder, settings)
        case "transformers":
            from sppo.engines.transformers_engine import TransformersEngine

            return TransformersEngine(folder, settings)
        case _:
            assert_never(settings.engine)
