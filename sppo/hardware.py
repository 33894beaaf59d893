"""Where it runs: devices, processes, tokens at once, ZeRO stage, time-outs. Never fingerprinted: it never changes results."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sppo.configuration import Frozen, named_file, read_yaml, validate
from sppo.errors import HardwareError
from sppo.explanation import PATH_SHOWN, shown

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


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

    nodes: Positive = 1
    """Machines that train together, each with `processes` ranks. More than one needs a pool."""
    processes: Positive
    """Ranks on each machine."""
    tokens_per_device: Positive
    """Tokens a device computes at once, each prompt counted once with its responses. How many micro-batches a global batch
    takes follows from it; a prompt that alone has more is a micro-batch of its own."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    offload: Literal["none", "optimizer", "optimizer_and_parameters"]
    """To CPU memory."""
    recompute_activations: bool
    checkpoint_steps: Positive
    """Steps between checkpoints."""
    timeout_s: Positive

    @property
    def ranks(self) -> int:
        """Of all machines."""
        return self.nodes * self.processes


class Pool(Frozen):
    """Where the heavy stages run if not in the flow's own process: workers of a Prefect work pool, one or more machines like
    the one that the rest of the file describes."""

    name: str
    jobs: Literal["workers"] | Positive
    """How many jobs generate and rank fan out into: as many as workers are online when the stage begins, or a number."""
    lost_after_s: Positive = 120
    """Without a sign of life for this long, a job is taken for lost and started again on another worker."""


class Hardware(Frozen):
    """One machine, as far as a run may use it; with a pool, one of several like it."""

    name: str
    device: Literal["cpu", "cuda"]
    threads: Positive
    """CPU threads a stage may use, shared out among its processes."""
    generate: GenerateHardware
    rank: RankHardware
    train: TrainHardware
    pool: Pool | None = None
    """None: the heavy stages run in the flow's own process, on this machine."""
    price_per_device_hour: Annotated[float, Field(ge=0)] | None = None
    """In any currency: `sppo status` multiplies it with device hours."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Of one device in bf16, dense, as its maker states it; useful MFU is a share of it. On a CPU it is measured instead."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Of one device, or of the machine where the device is its CPU: `sppo plan` says whether training fits."""
    host_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Of the machine beside its GPUs: where what is offloaded goes."""
    expected_mfu: Share | None = None
    """Useful MFU that training is expected to reach here: the minutes of `sppo plan` rest on it."""

    @model_validator(mode="after")
    def _several_machines_need_a_pool(self) -> Self:
        if self.train.nodes > 1 and self.pool is None:
            raise ValueError(
                f"train.nodes is {self.train.nodes} and there is no pool; expected one whose workers are the machines, such as "
                "pool: {name: gpu, jobs: workers}"
            )
        return self

    def threads_for(self, processes: int) -> int:
        """Threads of each of several processes, at least 1."""
        return max(1, self.threads // processes)


def hardware_names(folder: Path) -> list[str]:
    """Names of the hardware files in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_hardware(name: str, folder: Path) -> Hardware:
    """A hardware file by name from a folder, or by path. Raises HardwareError naming what is wrong and what is known.

    `like: <name>` takes over another file of the folder; what stands beside it replaces whole top-level values."""
    path = named_file(name, folder)
    if path is None:
        known = ", ".join(hardware_names(folder)) or "none"
        raise HardwareError(
            f"no hardware {shown(name, PATH_SHOWN)} in {folder}; known: {known}; or give the path of a YAML file"
        )
    return validate(Hardware, _values(path, folder), str(path), HardwareError)


def _values(path: Path, folder: Path) -> dict[str, Any]:
    values = read_yaml(path, HardwareError)
    like = values.pop("like", None)
    if like is None:
        return values
    other = named_file(str(like), folder)
    if other is None or other.resolve() == path.resolve():
        raise HardwareError(f"{path}: like is {like!r}; expected another file of {folder}: {', '.join(hardware_names(folder))}")
    inherited = read_yaml(other, HardwareError)
    if "like" in inherited:
        raise HardwareError(f"{path}: like is {like!r}, which is itself like another; expected one that stands alone")
    return {**inherited, **values}
