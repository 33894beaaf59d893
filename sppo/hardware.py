"""Where it runs: devices, processes, micro-batch, ZeRO stage, time-outs. Never fingerprinted, for it never changes results."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sppo.configuration import Frozen, named_file, read_model
from sppo.errors import HardwareError

Positive = Annotated[int, Field(ge=1)]


class GenerateHardware(Frozen):
    """One engine a process; a process has `tensor_parallel` devices."""

    processes: Positive
    tensor_parallel: Positive
    memory_share: Annotated[float, Field(gt=0, lt=1)]
    """Of a GPU's memory, for the engine. Not read on CPU."""
    kv_cache_mib: Positive | None = None
    """Size of the key-value cache; without it the engine takes what memory_share leaves. Needed on CPU."""
    max_concurrent: Positive
    """Sequences in flight in one engine."""
    timeout_s: Positive


class RankHardware(Frozen):
    """One judge a process."""

    processes: Positive
    tokens_per_batch: Positive
    timeout_s: Positive


class TrainHardware(Frozen):
    """One rank a process and a device."""

    processes: Positive
    micro_batch: Positive
    """Prompts a device at once. Accumulation is derived: global_batch / (processes x micro_batch)."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    offload: Literal["none", "optimizer", "optimizer_and_parameters"]
    """To CPU memory."""
    recompute_activations: bool
    checkpoint_steps: Positive
    """Steps between checkpoints."""
    timeout_s: Positive


class Hardware(Frozen):
    """One machine, as far as a run may use it."""

    name: str
    device: Literal["cpu", "cuda"]
    threads: Positive
    """CPU threads a stage may use, shared out among its processes."""
    generate: GenerateHardware
    rank: RankHardware
    train: TrainHardware

    def threads_for(self, processes: int) -> int:
        """Threads of each of several processes, at least 1."""
        return max(1, self.threads // processes)

    def accumulation_steps(self, global_batch: int) -> int:
        """Micro-batches a device a step. Raises HardwareError if the global batch cannot be shared out equally."""
        at_once = self.train.processes * self.train.micro_batch
        if global_batch % at_once:
            raise HardwareError(
                f"global_batch {global_batch} of the recipe does not divide into {self.train.processes} processes x "
                f"micro_batch {self.train.micro_batch} = {at_once} of hardware {self.name}; "
                f"choose a micro_batch so that processes x micro_batch divides {global_batch}"
            )
        return global_batch // at_once


def hardware_names(folder: Path) -> list[str]:
    """Names of the hardware files in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_hardware(name: str, folder: Path) -> Hardware:
    """A hardware file by name from a folder, or by path. Raises HardwareError naming what is wrong and what is known."""
    path = named_file(name, folder)
    if path is None:
        known = ", ".join(hardware_names(folder)) or "none"
        raise HardwareError(f"no hardware {name!r} in {folder}; known: {known}; or give the path of a YAML file")
    return read_model(Hardware, path, HardwareError)
