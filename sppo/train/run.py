"""What a training process is told: its run.json."""

from typing import Literal

from sppo.configuration import Frozen
from sppo.hardware import TrainHardware
from sppo.recipe import Training


class TrainRun(Frozen):
    """One training, concretely. Equal for all ranks; the environment says which rank a process is."""

    fingerprint: str
    """Of the artifact in the making."""
    iteration: int
    seed: int
    dtype: Literal["float32", "bfloat16"]
    policy: str
    """References of artifacts."""
    prompts: str
    prompts_file: str
    responses: str
    targets: str
    training: Training
    device: Literal["cpu", "cuda"]
    hardware: TrainHardware
    resume_from: str | None
    """A part: the checkpoint to continue from."""
    peak_flops: float | None = None
    """FLOP/s of a device by the hardware file; None: on CPU it is measured, on a GPU MFU is left out."""

    @property
    def layout(self) -> str:
        """What a DeepSpeed checkpoint is tied to: the number of ranks and the ZeRO stage."""
        return layout(self.hardware)


def layout(hardware: TrainHardware) -> str:
    """Ranks and ZeRO stage in a word, such as `ranks2-zero3`."""
    return f"ranks{hardware.ranks}-zero{hardware.zero_stage}"
