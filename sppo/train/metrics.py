"""The metrics line of each step: into the artifact's own JSONL, and to TensorBoard, W&B and MLflow where the person has them.

    with open_metrics(path, about) as metrics:
        metrics.write(line)

The JSONL is part of the artifact: what fails there fails the training. The others are for looking on, and here, on purpose, an
error is not raised: each tracker works on a thread of its own, so it can neither stop nor slow the training, and one that fails
is named once in the log with its reason and told nothing more.
"""

import json
import logging
import queue
import resource
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from sppo.secrecy import without_secrets
from sppo.train.flops import useful_mfu
from sppo.train.trackers import About, Tracker, asked_trackers

__all__ = ["CLOCKED", "About", "Metrics", "Pace", "event_files", "note", "open_metrics"]

log = logging.getLogger(__name__)

Line = Mapping[str, float]
GIB = 2**30
CLOCKED = frozenset(("seconds", "tokens_per_s", "responses_per_s", "pairs_per_s", "useful_mfu", "memory_gib", "seconds_left"))
"""Figures of a line that say how fast the machine was; all others are equal whenever the same training runs again."""
CLOSING_S = 60.0
"""How long a tracker may take to send what is left when training is over."""
WAITING_LINES = 100_000
"""Lines kept for a tracker that does not answer."""


@dataclass
class Pace:
    """How fast training goes: the figures of a step that hang on the clock and the machine."""

    steps: int
    """Of the whole training."""
    devices: int
    peak: float | None
    """FLOP/s of one device; None leaves MFU out, for it is never guessed."""
    device: str
    """Torch's name of this rank's own."""
    _seconds: list[float] = field(default_factory=list)

    def figures(self, step: int, seconds: float, tokens: float, responses: int, pairs: int, flops: float) -> dict[str, float]:
        """Of a step, counted from 1. tokens: computed, each prompt once; pairs: prompts with their best and worst in it;
        flops: useful ones, over all ranks."""
        self._seconds.append(seconds)
        usual = self._seconds[1:] or self._seconds  # the first step compiles, and fills caches
        found = {
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "responses_per_s": responses / seconds,
            "pairs_per_s": pairs / seconds,
            "memory_gib": peak_memory(self.device) / GIB,
            "seconds_left": (self.steps - step) * sum(usual) / len(usual),
        }
        if self.peak is not None:
            found["useful_mfu"] = useful_mfu(flops, seconds, self.devices, self.peak)
        return found


def peak_memory(device: str) -> float:
    """The most bytes so far: allocated on a GPU, or resident of this process."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def note(line: Line) -> str:
    """A step in a few words, for the progress line."""
    words = [f"loss {line['loss']:.4f}", f"{_short(line['tokens_per_s'])} tokens/s", f"{line['pairs_per_s']:.3g} pairs/s"]
    if "useful_mfu" in line:
        words.append(f"MFU {100 * line['useful_mfu']:.0f} %")
    words += [f"{line['memory_gib']:.3g} GiB", f"{_duration(line['seconds_left'])} left"]
    return ", ".join(words)


class Metrics:
    """Where the lines go. Opened by `open_metrics`, closed by leaving its `with` block."""

    def __init__(self, path: Path, trackers: Mapping[str, Callable[[], Tracker]]) -> None:
        self.path = path
        self._lines = path.open("a", encoding="utf-8")
        known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._asides = [_Aside(name, opened, known) for name, opened in trackers.items()]

    def write(self, line: Line) -> None:
        """Add a step. Raises OSError if the JSONL cannot be written, and nothing else."""
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for aside in self._asides:
            aside.tell(dict(line))

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        for aside in self._asides:
            aside.end(well=kind is None)
        for aside in self._asides:
            aside.wait()


def open_metrics(path: Path, about: About) -> Metrics:
    """The JSONL at `path`, gone on with if it is there, and every tracker that this machine's environment asks for.

    `path` holds the steps already done after a resume; trackers are told of those that they do not know."""
    return Metrics(path, asked_trackers(about, path.parent))


def event_files(path: Path) -> list[Path]:
    """TensorBoard's files beside a closed JSONL, if it wrote them there."""
    return sorted((path.parent / "tensorboard").glob("events.out.tfevents.*"))


class _Aside:
    """A tracker on a thread of its own."""

    def __init__(self, name: str, opened: Callable[[], Tracker], known: list[dict[str, float]]) -> None:
        self.name = name
        self._lines: queue.Queue[dict[str, float] | bool] = queue.Queue(WAITING_LINES)
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(opened, known), name=f"metrics to {name}", daemon=True)
        self._thread.start()

    def tell(self, line: dict[str, float] | bool) -> None:
        if self._failed.is_set():
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._give_up(f"{WAITING_LINES:,} lines wait for it")

    def end(self, well: bool) -> None:
        """No more lines; whether training went well."""
        self.tell(well)

    def wait(self) -> None:
        self._thread.join(0 if self._failed.is_set() else CLOSING_S)
        if self._thread.is_alive() and not self._failed.is_set():
            self._give_up(f"it has not answered for {CLOSING_S:.0f} s")

    def _run(self, opened: Callable[[], Tracker], known: list[dict[str, float]]) -> None:
        try:
            tracker = opened()
            for line in known:
                tracker.write(line)
            while not self._failed.is_set():
                told = self._lines.get()
                if isinstance(told, bool):
                    tracker.close(told)
                    return
                tracker.write(told)
        except Exception as error:  # noqa: BLE001 - a tracker is somebody else's code; whatever it raises, training goes on
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        """Say so, once."""
        if not self._failed.is_set():
            self._failed.set()
            said = without_secrets(" ".join(reason.split()))[:500]
            log.error("train: %s is told no more: %s; training goes on, and its metrics.jsonl has every step", self.name, said)


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
