"""Master weights in fp32: into the engine from a policy's folder, and out of it into the next policy's folder.

The new folder mirrors the old one: the same files with the same tensor names, only the values and the dtype differ. So
tied weights, shards and their index stay as the policy's makers stored them, and whatever loaded pi_t loads pi_{t+1}.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.errors import PolicyError

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"


def stored_names(folder: Path) -> dict[str, list[str]]:
    """Names of the tensors in each safetensors file of a policy's folder."""
    from safetensors import safe_open

    names: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            names[path.name] = sorted(stored.keys())
    return names


def parameters_of(policy: Any, folder: Path) -> dict[str, dict[str, "torch.nn.Parameter"]]:
    """The parameter behind each stored tensor, file by file; tied ones appear under every name they are stored by.

    Raises PolicyError unless the files hold all parameters of the model and nothing else but derived buffers."""
    named = dict(policy.named_parameters(remove_duplicate=False))
    found: dict[str, dict[str, torch.nn.Parameter]] = {}
    for file, names in stored_names(folder).items():
        unknown = [name for name in names if name not in named and not name.endswith("rotary_emb.inv_freq")]
        if unknown:
            raise PolicyError(
                f"{file} of the policy holds the tensor {unknown[0]!r}, which {type(policy).__name__} does not have; "
                "save the policy with transformers' save_pretrained and use that folder"
            )
        found[file] = {name: named[name] for name in names if name in named}
    stored = {id(parameter) for tensors in found.values() for parameter in tensors.values()}
    missing = [name for name, parameter in named.items() if id(parameter) not in stored]
    if missing:
        raise PolicyError(
            f"the policy's safetensors files lack {missing[0]!r} ({len(missing)} tensors); expected all weights of "
            f"{type(policy).__name__}: fetch or save the policy again"
        )
    return found


def set_masters(policy: Any, folder: Path) -> None:
    """Put the stored fp32 values into the optimizer's master weights of a bf16 engine.

    DeepSpeed makes its masters from the bf16 weights; an iteration's update is mostly smaller than bf16 can hold, so that
    would throw away what the iterations before have learned."""
    from safetensors import safe_open

    for file, tensors in parameters_of(policy, folder).items():
        with safe_open(folder / file, framework="pt") as stored:
            for name, parameter in tensors.items():
                set_master(parameter, stored.get_tensor(name).float())


def set_master(parameter: Any, value: "torch.Tensor") -> None:
    """Put a full fp32 value into the master of a parameter of a bf16 engine. All ranks call this together."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_fp32_param(parameter, value)
        return
    # The last rank's part is padded; DeepSpeed's own setter of full values does not pad and fails there.
    share = parameter.ds_tensor.numel()
    part = value.flatten()[share * torch.distributed.get_rank() :][:share]
    safe_set_local_fp32_param(parameter, torch.nn.functional.pad(part, (0, share - part.numel())))


def master_of(parameter: Any) -> "torch.Tensor":
    """The full fp32 value of a parameter, on every rank. All ranks call this together."""
    from deepspeed.utils import safe_get_full_fp32_param

    value: torch.Tensor | None = safe_get_full_fp32_param(parameter)
    return (parameter.detach() if value is None else value).float()


def write_policy(policy: Any, source: Path, target: Path, writes: bool) -> list[Path]:
    """The trained policy's folder, from its master weights. All ranks call this together; one of them writes."""

    def masters(tensors: dict[str, "torch.nn.Parameter"]) -> Iterator[tuple[str, "torch.Tensor"]]:
        for name, parameter in tensors.items():
            value = master_of(parameter)
            if writes:
                yield name, value

    files = {file: masters(tensors) for file, tensors in parameters_of(policy, source).items()}
    return write_folder(files, source, target, writes)


def write_folder(
    files: Mapping[str, Iterable[tuple[str, "torch.Tensor"]]], source: Path, target: Path, writes: bool, dtype: str = "float32"
) -> list[Path]:
    """A policy's folder like `source` with these tensors, which have this dtype, file by file. All ranks call this together;
    one of them writes.

    Tokenizer, chat template and generation settings are copied byte for byte. Result: the files, sorted."""
    from safetensors.torch import save_file

    sizes = 0
    for file, tensors in files.items():
        values = {name: value.cpu().contiguous().clone() for name, value in tensors}
        sizes += sum(value.numel() * value.element_size() for value in values.values())
        if writes:
            target.mkdir(parents=True, exist_ok=True)
            save_file(values, target / file, metadata={"format": "pt"})
    if not writes:
        return []
    for path in sorted(source.iterdir()):
        if path.name == CONFIG:
            _write_json({**json.loads(path.read_text(encoding="utf-8")), "dtype": dtype}, target / CONFIG)
        elif path.name.endswith(".safetensors.index.json"):
            index = json.loads(path.read_text(encoding="utf-8"))
            _write_json({**index, "metadata": {**index.get("metadata", {}), "total_size": sizes}}, target / path.name)
        elif path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
    return sorted(target.iterdir())


def _write_json(value: dict[str, Any], path: Path) -> None:
    value.pop("torch_dtype", None)  # the older name of dtype
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
