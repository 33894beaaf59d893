"""DeepSpeed: its settings, the policy and its optimizer. ZeRO-0 to 3 by the hardware file; DeepSpeed never chooses anything."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from sppo.errors import HardwareError, LaunchError
from sppo.hardware import Hardware
from sppo.train import adapters, attention
from sppo.train.optimizers import optimizer_for
from sppo.train.run import TrainRun

BUCKET = 50_000_000
"""Elements communicated at once: 200 MB in fp32."""


def check_hardware(hardware: Hardware, dtype: str) -> None:
    """Raises HardwareError for settings that DeepSpeed cannot run, or runs less precisely than the recipe asks for."""
    train = hardware.train
    if dtype == "bfloat16" and train.zero_stage == 0:
        raise HardwareError(
            f"zero_stage 0 of hardware {hardware.name} sums gradients in bfloat16 for a policy of dtype bfloat16; "
            "expected fp32 sums: choose train.zero_stage 1, 2 or 3"
        )
    needed = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[train.offload]
    if train.zero_stage < needed:
        raise HardwareError(
            f"train.offload {train.offload} of hardware {hardware.name} needs zero_stage {needed} or more, "
            f"found {train.zero_stage}: raise train.zero_stage or set train.offload to none"
        )


def deepspeed_settings(run: TrainRun) -> dict[str, Any]:
    """The complete configuration. Offloading is left out on CPU, where everything is in CPU memory already."""
    hardware = run.hardware
    zero: dict[str, Any] = {"stage": hardware.zero_stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if hardware.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = BUCKET
    if run.device == "cuda" and hardware.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if run.device == "cuda" and hardware.offload == "optimizer_and_parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        # How many micro-batches a step takes differs from step to step: the loop says which is the last.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": run.training.max_grad_norm,
        "bf16": {"enabled": run.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # RMSprop
        "zero_force_ds_cpu_optimizer": False,  # torch's own optimizers, offloaded or not
        "steps_per_print": 1_000_000_000,
    }


def prepare_environment(device: str) -> None:
    """Variables that torch, transformers and DeepSpeed read when they are imported: call this first."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Nothing is compiled on a CPU, and DeepSpeed's decorators would import the compiler. On a GPU FlexAttention is.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # torch's large blocks in huge pages: half the time spent on asking for them


def connect(run: TrainRun) -> tuple[int, int, str]:
    """Join the other ranks; (rank, world size, torch device).

    Raises LaunchError if this machine has fewer GPUs than ranks."""
    import deepspeed
    import deepspeed.ops
    import torch

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    timeout = timedelta(seconds=run.hardware.timeout_s)
    if run.device == "cpu":
        # Not compatible, any of them: probing runs compilers, and building deepspeed_shm_comm takes minutes.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(dist_backend="gloo", timeout=timeout, verbose=False)
        return rank, world_size, "cpu"
    if torch.cuda.device_count() < local_size:
        raise LaunchError(
            f"train.processes is {local_size} and this machine shows {torch.cuda.device_count()} GPUs; expected one each: "
            "choose hardware with fewer processes, or check CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(local)
    deepspeed.init_distributed(dist_backend="nccl", timeout=timeout, verbose=False)
    return rank, world_size, f"cuda:{local}"


def load_policy(run: TrainRun, folder: Path) -> Any:
    """pi_t as a transformers model, trainable whole or in its adapter alone; ZeRO-3 splits it among the ranks as it is read."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # transformers holds this weakly and splits what it loads while it lives.
    adapter = run.training.adapter
    splits = run.hardware.zero_stage == 3 and adapter.kind != "qlora"  # what is packed into 4 bits must be whole
    zero3 = HfDeepSpeedConfig(deepspeed_settings(run)) if splits else None
    policy = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, run.dtype),
        attn_implementation=attention.register(),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    del zero3
    if adapter.kind != "none":
        adapters.adapt(policy, adapter, run.seed)
    without_dropout(policy)
    policy.train()
    if run.hardware.recompute_activations:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy


def without_dropout(model: Any) -> None:
    """Set every dropout to 0: log pi_theta is compared with log pi_t, and noise in it would be trained on."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def open_engine(run: TrainRun, policy: Any) -> Any:
    """The DeepSpeed engine around a packed policy."""
    import deepspeed

    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = optimizer_for(run.training, trained)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=deepspeed_settings(run))
    return engine
