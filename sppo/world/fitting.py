"""What the two fits of the tiny world share: a process of their own, reproducible weights, batches of equal length."""

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sppo.configuration import Frozen
from sppo.launch import Worker, run_workers, thread_environment, write_config
from sppo.progress import Report

if TYPE_CHECKING:
    import torch

TIMEOUT_S = 1800.0
POOL_BATCHES = 16
"""Batches are cut from this many batches' worth of examples, sorted by length: little padding, still well mixed."""


class Fit(Frozen):
    """The run.json of `python -m sppo.world.worker`."""

    what: Literal["policy", "judge"]
    folder: str
    """Where the files go; empty when the fit starts."""
    seed: int
    steps: int
    progress: str
    metrics: str
    """Where the worker writes its figures, as a JSON object of numbers."""


def fit_apart(
    what: Literal["policy", "judge"], folder: Path, seed: int, steps: int, threads: int, report: Report
) -> dict[str, float]:
    """Fit in a process of its own, so that both fits run at once, and each with its own number of threads.

    Raises LaunchError with the worker's last lines if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sppo-world-") as name:
        place = Path(name)
        config = Fit(
            what=what,
            folder=str(folder),
            seed=seed,
            steps=steps,
            progress=str(place / "progress.json"),
            metrics=str(place / "metrics.json"),
        )
        worker = Worker(
            module="sppo.world.worker",
            config=write_config(config, place / "run.json"),
            log=place / "worker.log",
            progress=Path(config.progress),
            environment={**thread_environment(threads), "CUDA_VISIBLE_DEVICES": ""},
        )
        run_workers([worker], TIMEOUT_S, report, lambda seen: seen[0])
        figures: dict[str, float] = json.loads(Path(config.metrics).read_text())
    return figures


def draw_weights(model: "torch.nn.Module", seed: int, deviation: float) -> None:
    """Fill a model's parameters from a generator of its own: matrices normal, norms one, biases zero.

    The library's initialisation draws from the process's one generator, which anyone may have moved."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def batches(lengths: Sequence[int], size: int, draw: random.Random) -> list[list[int]]:
    """Positions of all examples in batches of `size`, near-equal lengths together, in an order of chance."""
    order = list(range(len(lengths)))
    draw.shuffle(order)
    cut: list[list[int]] = []
    for start in range(0, len(order), size * POOL_BATCHES):
        pool = sorted(order[start : start + size * POOL_BATCHES], key=lambda position: lengths[position])
        cut.extend(pool[first : first + size] for first in range(0, len(pool), size))
    draw.shuffle(cut)
    return cut


def warm_linear(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: up over `warmup` steps, then down in a line to zero."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
