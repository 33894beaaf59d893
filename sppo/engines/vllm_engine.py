"""vLLM's offline engine, in this process: K samples a prompt in one request, sharing the prompt's cache."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.engines import EngineSettings, Request, Sample

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a worker process of ours needs no second one; loading takes a tenth of the time
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_COLOR": "0",
    "HF_HUB_OFFLINE": "1",
}
CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # by default two workers would be bound to the same first cores
    "TORCH_COMPILE_DISABLE": "1",  # saves 2 s of compiling a few small functions, and needs no C++ compiler
}
CPU_BLOCK = 32
"""Tokens. A prompt's cache is shared by its samples in whole blocks; the default on CPU, 128, is longer than many prompts."""
CPU_BATCH_TOKENS = 2048
WINDOW = 2
"""Sequences handed over, in units of those in flight: the engine never waits for us."""


class VllmEngine:
    """A policy loaded into vLLM."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        set_environment(settings)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.settings = settings
        self.engine: LLMEngine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(folder, settings)))

    @classmethod
    def around(cls, engine: "LLMEngine", settings: EngineSettings) -> "VllmEngine":
        """The same over an engine that is loaded already."""
        made = cls.__new__(cls)
        made.engine, made.settings = engine, settings
        return made

    def answer(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        """Each request with its K samples, as they finish."""
        waiting: dict[str, Request] = {}
        in_flight = 0
        more = True
        while True:
            while more and in_flight < WINDOW * self.settings.max_concurrent:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                name = f"{request.draw}-{request.position}"
                waiting[name] = request
                in_flight += request.responses
                prompt: Any = {"prompt_token_ids": request.token_ids}
                self.engine.add_request(name, prompt, sampling_parameters(request, self.settings.stop_token_ids))
            if not waiting:
                return
            for output in self.engine.step():
                if output.finished:
                    request = waiting.pop(output.request_id)
                    in_flight -= request.responses
                    yield request, [_sample(completion) for completion in output.outputs]


def set_environment(settings: EngineSettings) -> None:
    """What vLLM reads from the environment when it is imported."""
    os.environ.update(ENVIRONMENT | (CPU_ENVIRONMENT if settings.device == "cpu" else {}))


def engine_arguments(folder: Path, settings: EngineSettings) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs."""
    arguments: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": False,
        "skip_tokenizer_init": True,  # ids in, ids out
        "generation_config": "vllm",  # the model's own file would add stop tokens and sampling that the recipe does not name
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_concurrent,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.memory_share,
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings.kv_cache_mib is not None:
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_mib << 20
    if settings.device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "block_size": CPU_BLOCK,
            # vLLM rewinds a seeded generator after half a prefill, which a CPU generator cannot do: prompts are read whole
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCH_TOKENS, settings.max_model_len),
        }
    return arguments


def sampling_parameters(request: Request, stop_token_ids: tuple[int, ...]) -> "SamplingParams":
    """vLLM's parameters: K samples, seeds of their own, ids and raw log-probs only."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=request.responses,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,  # the stop ids hold the EOS
        detokenize=False,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _sample(completion: Any) -> Sample:
    token_ids = [int(number) for number in completion.token_ids]
    flat = completion.logprobs
    logprobs = [float(flat.logprobs[start]) for start in flat.start_indices]
    return Sample(token_ids, logprobs)
