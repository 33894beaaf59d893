"""Low-rank adapters: a linear layer's W stays and W + (alpha / r) B A is trained (LoRA, arXiv:2106.09685), W in fp32 or bf16,
or in 4 bits (QLoRA, arXiv:2305.14314).

pi_t is the same model with the adapter off, so no second model is kept for the reference. After training the update is added
to the policy's stored fp32 weights: the next policy is a plain one, and every later stage sees no adapter. A layer's W keeps
its name, so names in files and model stay equal; a 4-bit W is no parameter, its values stay in the file.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from sppo.errors import PolicyError
from sppo.fingerprint import seed_of
from sppo.recipe import LoraAdapter, QloraAdapter
from sppo.train import nf4, weights

if TYPE_CHECKING:
    import torch

FILE = "adapter.safetensors"


@dataclass
class Adaptation:
    """What an adapted linear layer has besides its parameters `lora_a` and `lora_b`: its attribute `adaptation`."""

    scale: float
    """alpha / r."""
    on: bool = True


def adapt_linear(linear: Any, rank: int, alpha: float, in_4_bits: bool, draw: "torch.Generator") -> None:
    """Make a torch.nn.Linear compute x W^T + b + (alpha / r) x A^T B^T, in place, with W and b frozen.

    A: (r, in) is drawn as torch draws a linear layer's weights; B: (out, r) is 0, so it begins as the layer it was."""
    import torch

    place: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    down = torch.empty(rank, linear.in_features)
    torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=draw)
    linear.requires_grad_(False)
    if in_4_bits:
        codes, scales = nf4.packed(linear.weight)
        linear.weight = None
        linear.register_buffer("codes", codes)
        # as bits: an engine that casts a model to bf16 casts every floating buffer with it
        linear.register_buffer("scale_bits", scales.view(torch.int32))
    linear.lora_a = torch.nn.Parameter(down.to(**place))
    linear.lora_b = torch.nn.Parameter(torch.zeros(linear.out_features, rank, **place))
    linear.adaptation = Adaptation(alpha / rank)
    linear.forward = MethodType(_forward, linear)


def _forward(layer: Any, inputs: "torch.Tensor") -> "torch.Tensor":
    """(..., in) to (..., out)."""
    import torch

    if layer.weight is None:
        shape = torch.Size((layer.out_features, layer.in_features))
        outputs = nf4.linear(inputs, layer.codes, layer.scale_bits.view(torch.float32), shape)
        outputs = outputs if layer.bias is None else outputs + layer.bias
    else:
        outputs = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    if layer.adaptation.on:
        inner = torch.nn.functional.linear(inputs, layer.lora_a)  # (..., r)
        outputs = outputs + layer.adaptation.scale * torch.nn.functional.linear(inner, layer.lora_b)
    return outputs


def adapt(policy: Any, adapter: LoraAdapter | QloraAdapter, seed: int) -> list[str]:
    """Adapt the linear layers that the adapter names, in place, and freeze everything else; the layers' names, sorted.

    A is seeded by sha256 of (seed, the layer's name), so it depends on nothing else of the model. For 4 bits the weights must
    be whole: load the policy unsplit, also under ZeRO-3. Raises PolicyError for a name that no linear layer ends with."""
    import torch

    head = policy.get_output_embeddings()  # tied to the input embedding, or as large: never adapted
    linear = {
        name: module for name, module in policy.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    chosen = {name for name in linear if any(_ends_with(name, ending) for ending in adapter.modules)}
    for ending in adapter.modules:
        if not any(_ends_with(name, ending) for name in linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise PolicyError(
                f"training.adapter.modules names {ending!r} and {type(policy).__name__} has no such linear layer; expected "
                f"some of {known}"
            )
    policy.requires_grad_(False)
    for name in sorted(chosen):
        draw = torch.Generator().manual_seed(seed_of("adapter", seed, name))
        adapt_linear(linear[name], adapter.rank, adapter.alpha, adapter.kind == "qlora", draw)
    return sorted(chosen)


def adapted_layers(policy: Any) -> dict[str, Any]:
    """The adapted layers by name."""
    return {name: module for name, module in policy.named_modules() if hasattr(module, "adaptation")}


@contextmanager
def without_adapter(policy: Any) -> Iterator[None]:
    """Inside, the policy is pi_t: all adapters are off. Under QLoRA that is pi_t in 4 bits."""
    layers = adapted_layers(policy).values()
    for layer in layers:
        layer.adaptation.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adaptation.on = True


def update_of(layer: Any) -> "torch.Tensor":
    """(out, in) fp32, (alpha / r) B A from the master weights. Under ZeRO all ranks call this together."""
    up, down = weights.master_of(layer.lora_b), weights.master_of(layer.lora_a)  # (out, r), (r, in)
    update: torch.Tensor = layer.adaptation.scale * (up @ down)
    return update


def write_adapters(policy: Any, folder: Path, writes: bool) -> None:
    """All A and B in fp32, as the file `adapter.safetensors`. All ranks call this together; one of them writes."""
    from safetensors.torch import save_file

    values = {name: weights.master_of(parameter).cpu().contiguous() for name, parameter in _matrices(policy).items()}
    if writes:
        save_file(values, folder / FILE)


def read_adapters(policy: Any, folder: Path) -> None:
    """Set all A and B, rounded to the policy's dtype: before an engine is made."""
    import torch

    with torch.no_grad():
        for parameter, value in _stored(policy, folder):
            parameter.copy_(value)


def set_adapter_masters(policy: Any, folder: Path) -> None:
    """Put the stored fp32 values of all A and B into the master weights of a bf16 engine."""
    for parameter, value in _stored(policy, folder):
        weights.set_master(parameter, value)


def _matrices(policy: Any) -> dict[str, "torch.nn.Parameter"]:
    layers = adapted_layers(policy).items()
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers for part in ("lora_a", "lora_b")}


def _stored(policy: Any, folder: Path) -> "Iterator[tuple[torch.nn.Parameter, torch.Tensor]]":
    from safetensors import safe_open

    with safe_open(folder / FILE, framework="pt") as stored:
        for name, parameter in _matrices(policy).items():
            yield parameter, stored.get_tensor(name)


def write_merged_policy(policy: Any, source: Path, target: Path, writes: bool) -> list[Path]:
    """The trained policy's folder: the stored fp32 weights of `source`, pi_t, plus the updates; nothing of the forward pass's
    precision or of 4 bits comes into it. All ranks call this together; one of them writes. Result: the files, sorted.

    Raises PolicyError if the file lacks the weight of an adapted layer."""
    layers = {f"{name}.weight": layer for name, layer in adapted_layers(policy).items()}
    names = weights.stored_names(source)
    missing = sorted(set(layers) - {name for each in names.values() for name in each})
    if missing:
        raise PolicyError(
            f"the policy's safetensors files lack {missing[0]!r} ({len(missing)} tensors), whose update was trained; expected "
            f"all weights of {type(policy).__name__}: fetch or save the policy again"
        )

    def merged(file: str) -> "Iterator[tuple[str, torch.Tensor]]":
        from safetensors import safe_open

        with safe_open(source / file, framework="pt") as stored:
            for name in names[file]:
                update = update_of(layers[name]).cpu() if name in layers else 0.0
                if writes:
                    yield name, stored.get_tensor(name).float() + update

    return weights.write_folder({file: merged(file) for file in names}, source, target, writes)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
