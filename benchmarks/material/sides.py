"""The sides of benchmarks/training.py: which command runs each, with which settings, and which are the best of each."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.material.preferences import PAIRS, Steps, write_steps
from benchmarks.material.turns import ROOT, Side
from sppo.launch.processes import KEEPS_MEMORY

TRL = ROOT / "build" / "rivals" / "trl" / "bin" / "python"
RECIPE = {"eta": 10.0, "learning_rate": 1e-5, "pairs": PAIRS}
"""Of all sides. A step moves the loss enough to see that every side takes the same one."""


@dataclass(frozen=True)
class Way:
    """A way to train, and its settings."""

    name: str
    who: str
    """`ours`, `released` or `trl`."""
    settings: dict[str, Any]
    all_responses: bool = False
    """All K of a prompt instead of a pair."""
    environment: Mapping[str, str] = field(default_factory=lambda: KEEPS_MEMORY)
    """Of its process: the one that our stage gives its own, also where a rival has its best settings."""

    def changed(self, name: str, **settings: Any) -> "Way":
        """The same way with other settings."""
        return replace(self, name=name, settings=self.settings | settings)


OURS = Way("ours", "ours", {"tokens_per_device": 4096, "reference": "sampler", "recompute": False, "engine": "torch"})
RELEASED = Way(
    "the reference's way as released",
    "released",
    {"micro_batch": PAIRS, "recompute": True, "weights": "float32"},
    environment={},
)
SHIPPED = Way("TRL as shipped", "trl", {"micro_batch": PAIRS, "settings": {}}, environment={})

OURS_TRIED = tuple(
    OURS.changed(f"ours, {tokens} tokens at once, {engine}", tokens_per_device=tokens, engine=engine)
    for engine in ("torch", "deepspeed")
    for tokens in (1024, 2048, 4096, 8192)
)
BEST_RELEASED = replace(RELEASED, environment=KEEPS_MEMORY)
RELEASED_TRIED = tuple(
    BEST_RELEASED.changed(
        f"the reference's way, {pairs} pairs at once, {weights} weights", micro_batch=pairs, recompute=False, weights=weights
    )
    for weights in ("float32", "bfloat16")
    for pairs in (1, 2, 4)
)
BEST_TRL = replace(SHIPPED, environment=KEEPS_MEMORY)
KEPT = {"gradient_checkpointing": False}
PRECOMPUTED = KEPT | {"precompute_ref_log_probs": True}
TRL_TRIED = (
    BEST_TRL.changed("TRL, 1 pair at once, activations kept", micro_batch=1, settings=KEPT),
    BEST_TRL.changed("TRL, 1 pair at once, kept, reference precomputed", micro_batch=1, settings=PRECOMPUTED),
    BEST_TRL.changed("TRL, 2 pairs at once, kept, reference precomputed", micro_batch=2, settings=PRECOMPUTED),
    BEST_TRL.changed(
        "TRL, 2 pairs at once, kept, precomputed, rebalanced by length",
        micro_batch=2,
        settings=PRECOMPUTED | {"train_sampling_strategy": "batch_rebalance", "remove_unused_columns": False},
    ),
)
"""Not tried, for it is not there: padding_free does nothing in this version, and Liger's kernels need Triton and a GPU."""


@dataclass(frozen=True)
class Material:
    """A policy and what it is trained on, as files."""

    folder: Path
    policy: Path
    pairs: Steps
    everything: Steps
    """The same prompts with all K responses."""

    def side(self, way: Way) -> Side:
        """The way's process, not yet started."""
        steps = self.everything if way.all_responses else self.pairs
        file = self.folder / ("everything.json" if way.all_responses else "pairs.json")
        if not file.exists():
            write_steps(steps, file)
        told = {**RECIPE, **way.settings, "policy": str(self.policy), "steps": str(file)}
        commands = {
            "ours": [sys.executable, ROOT / "benchmarks" / "material" / "packed.py"],
            "released": [sys.executable, ROOT / "benchmarks" / "rivals" / "released.py"],
            "trl": [TRL, ROOT / "benchmarks" / "rivals" / "trl_trainer.py"],
        }
        asked = [asked for step in steps for asked in step]
        log = self.folder / (re.sub(r"[^a-zA-Z0-9]+", "-", way.name) + ".log")
        responses = sum(len(one.responses) for one in asked)
        return Side(way.name, [*commands[way.who], json.dumps(told)], log, len(asked), responses, way.environment)

    def first_step(self, folder: Path) -> "Material":
        """One step alone, for trying settings."""
        folder.mkdir()
        return replace(self, folder=folder, pairs=self.pairs[:1], everything=self.everything[:1])


def measure_once(material: Material, way: Way) -> Side:
    """One round that counts and no other: good enough to choose by."""
    side = material.side(way)
    side.start()
    try:
        side.take_round(len(material.pairs), counts=True)
    finally:
        side.end()
    return side


def fastest(tried: Iterable[tuple[Way, Side]], budget: float) -> Way:
    """The way with the fewest CPU-seconds a pair within the memory budget in MB, or the smallest if none is."""
    found = list(tried)
    within = [(side.cpu_per_pair, place) for place, (_, side) in enumerate(found) if side.memory <= budget]
    if within:
        return found[min(within)[1]][0]
    return min(found, key=lambda pair: pair[1].memory)[0]


def take_turns(sides: list[Side], steps: int, rounds: int) -> None:
    """Every side in each round, one process at a time: all of them at once would not fit, for few give memory back. A step
    warms up, then come all steps; nobody always comes after the same one."""
    for number in range(rounds):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            side.start()
            try:
                side.take_round(1, counts=False)
                side.take_round(steps, counts=True)
            finally:
                side.end()
