"""What gpu_training.py measures with: the device, its rate, clock and memory; and ways to train that take turns on it."""

import contextlib
import gc
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.material.masters import Masters
from benchmarks.material.turns import ROOT

DENSE = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""bf16 FLOP/s without sparsity by the makers' data sheets, SXM cards."""


@dataclass(frozen=True)
class Card:
    """A CUDA device; or the CPU, on which the same code is tried."""

    device: str

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    @property
    def peak(self) -> float | None:
        """FLOP/s by its maker's data sheet, where it is known."""
        return next((value for name, value in DENSE.items() if name in self.name), None)

    def wait(self) -> None:
        """Until nothing is under way."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def forget_peak(self) -> None:
        """Free what nobody holds, and watch memory anew."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Most memory since; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0

    def product_rate(self, width: int) -> float:
        """FLOP/s of a large bf16 product: the best of five takes of twenty."""
        left, right = (torch.randn(width, width, device=self.device, dtype=torch.bfloat16) for _ in range(2))

        def several() -> None:
            for _ in range(20):
                left @ right

        several()
        return 20 * 2 * width**3 / min(self.timed(several) for _ in range(5))


def commit() -> str:
    """Of this checkout; `unknown` where git does not know it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


@dataclass
class Way:
    """One way to take a step."""

    name: str
    prepare: Callable[[], None]
    """What the policy shared with the others must be set to."""
    step: Callable[[int], None]
    """By the step's number."""
    smaller: Callable[[], str]
    """Halves what is computed at once, where memory ran out; says to what."""
    seconds: list[float] = field(default_factory=list)
    peak_gb: float = 0.0


def in_turn(ways: list[Way], steps: int, card: Card, policy: Any, masters: Masters) -> None:
    """Every way's steps, way after way in each; the first step warms up, and finds what fits."""
    for number in range(steps):
        for way in ways:
            way.prepare()
            card.forget_peak()
            while True:
                try:
                    seconds = card.timed(partial(way.step, number))
                    break
                except torch.OutOfMemoryError:
                    policy.zero_grad()
                    masters.optimizer.zero_grad()
                gc.collect()
                card.forget_peak()
                print(f"{way.name}: out of memory, now {way.smaller()}")
            way.peak_gb = max(way.peak_gb, card.peak_gb())
            if number:
                way.seconds.append(seconds)


def mfus(name: str, flops_per_s: float, rate: float, peak: float | None) -> dict[str, float]:
    """Share of the measured rate, and of the data sheet's."""
    found = {f"{name}_of_measured": round(flops_per_s / rate, 4)}
    return found | ({} if peak is None else {name: round(flops_per_s / peak, 4)})


def print_ways(ways: list[Way], prompts: int, flops: float, rate: float, peak: float | None) -> None:
    """A row each, of its best step."""
    print(f"{'':64}{'s a step':>10}{'pairs/s':>9}{'of measured':>13}{'of data sheet':>15}{'peak, GB':>10}")
    for way in ways:
        seconds = min(way.seconds)
        sheet = "-" if peak is None else f"{flops / seconds / peak:.1%}"
        share = f"{flops / seconds / rate:.1%}"
        print(f"{way.name:64}{seconds:>10.3f}{prompts / seconds:>9.2f}{share:>13}{sheet:>15}{way.peak_gb:>10.1f}")
