"""Sides that take turns, each in a process of its own: one step when it is asked to, then what the step cost.

A process of its own has its own peak of memory and its own packages; taking turns means that what else runs on the machine
meets all sides alike. Nothing of the project is imported here: rivals speak this from their own environments.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def resident() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """The most MB since the last `forget_peak`."""
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Start the peak anew. See proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


class Turns:
    """A side's end of the talk: made once its libraries are imported and before its model is loaded."""

    def __init__(self) -> None:
        self.channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever libraries print goes to the log
        self.before = resident()
        self.wall = self.cpu = 0.0

    def say(self, **values: float) -> None:
        """One line to the benchmark."""
        self.channel.write(json.dumps(values) + "\n")
        self.channel.flush()

    def wait(self) -> bool:
        """Until it is this side's turn; False if there will be no more."""
        asked = bool(sys.stdin.readline())
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return asked

    def ready(self, **values: float) -> bool:
        """The model is loaded; then as `wait`. From here on memory is watched."""
        self.say(loaded=resident() - self.before, **values)
        forget_peak()
        return self.wait()

    def done(self, loss: float) -> bool:
        """The step is done; then as `wait`."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.say(wall=wall, cpu=cpu, peak=peak() - self.before, loss=loss)
        return self.wait()


@dataclass
class Side:
    """One way to train, and what its steps cost."""

    name: str
    command: Sequence[str | Path]
    log: Path
    pairs: int
    """Prompts of all steps of a round."""
    responses: int
    """Likewise."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its own."""
    loaded: dict[str, float] = field(default_factory=dict)
    """What it said when it was ready."""
    cpu: list[float] = field(default_factory=list)
    """CPU-seconds by round."""
    wall: list[float] = field(default_factory=list)
    each: list[list[float]] = field(default_factory=list)
    """CPU-seconds of each step, by round."""
    losses: list[float] = field(default_factory=list)
    """Of the latest round's steps."""
    memory: float = 0.0
    """Peak in MB above what the process held before its model was loaded."""
    running: "subprocess.Popen[str] | None" = None

    def start(self, threads: int = 1) -> None:
        """Start the process and wait until its model is loaded."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = (
            os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        )
        with self.log.open("w", encoding="utf-8") as log:
            self.running = subprocess.Popen(
                [str(word) for word in self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment
                | dict(self.environment)
                | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"},
            )
        self.loaded = self.hear()

    def hear(self) -> dict[str, float]:
        """The next line. Raises RuntimeError with the end of the log if the process is gone."""
        assert self.running is not None
        assert self.running.stdout is not None
        line = self.running.stdout.readline()
        if not line:
            end = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended with {self.running.wait()}:\n{end}")
        heard: dict[str, float] = json.loads(line)
        return heard

    def take_round(self, steps: int, counts: bool) -> None:
        """All steps once. Rounds that do not count warm up: their time is thrown away, their memory counts."""
        assert self.running is not None
        assert self.running.stdin is not None
        heard = []
        for _ in range(steps):
            self.running.stdin.write("step\n")
            self.running.stdin.flush()
            heard.append(self.hear())
        self.memory = max(self.memory, *(each["peak"] for each in heard))
        self.losses = [each["loss"] for each in heard]
        if counts:
            self.each.append([each["cpu"] for each in heard])
            self.cpu.append(sum(self.each[-1]))
            self.wall.append(sum(each["wall"] for each in heard))

    def end(self) -> None:
        """No more turns."""
        if self.running is not None and self.running.stdin is not None:
            self.running.stdin.close()
            try:
                self.running.wait(60)
            except subprocess.TimeoutExpired:
                self.running.kill()
                self.running.wait()
            self.running = None

    @property
    def cpu_per_pair(self) -> float:
        """CPU-seconds a prompt with its responses, of the best round; precomputing the reference is a share of each round."""
        return min(self.cpu) / self.pairs + self.loaded.get("precompute_per_pair", 0.0)

    @property
    def wall_per_pair(self) -> float:
        """Likewise, in seconds on the clock."""
        return min(self.wall) / self.pairs + self.loaded.get("precompute_wall_per_pair", 0.0)
