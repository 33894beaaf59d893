"""Training: our packed steps against the reference's way and TRL's DPOTrainer, and against what the matrix work alone takes.

    .venv/bin/python benchmarks/training.py [--quick] [--rounds N] [--steps N] [--budget-mb N] [--profile]

A Llama of random weights (31 M parameters; --quick: 6 M, and no search for settings), 8 prompts an optimizer step, RMSprop,
clipping, the same token ids on every side, one thread. Lengths are a log-uniform mix (prompts of 30 to 500 tokens, responses of
50 to 500), and those of real answers where ../shared/data has them. Each side is a process of its own; they take turns in one
run. TRL runs in the environment that `make bench-rivals` builds. The best settings of each side within one memory budget are
found first. Last line: one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch starts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

import numpy as np

from benchmarks.material import sides
from benchmarks.material.preferences import (
    MID,
    PAIRS,
    REAL,
    SMALL,
    TINY,
    Asked,
    Shape,
    make_policy,
    make_steps,
    mixed_lengths,
    real_lengths,
)
from benchmarks.material.sides import OURS, RELEASED, SHIPPED, Material, Way
from benchmarks.material.turns import Side
from sppo.train.flops import measured_peak, training_flops
from sppo.train.shape import ModelShape, shape_of

K = 5
Numbers = dict[str, float]


@dataclass(frozen=True)
class Chosen:
    """The settings that each side runs with."""

    ours: Way
    released: Way
    trl: Way | None
    """None where its environment is not there."""


def main() -> None:
    """Measure and print."""
    options = read_options()
    shape = TINY if options.tiny else SMALL if options.quick else MID
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_policy(folder / "policy", shape)
        mixed = make_material(folder / "mixed", shape, options.steps, real=False, longest=60 if options.tiny else 500)
        if options.profile:
            profile(mixed)
            return
        print(f"training: {described(shape, parameters)}; {PAIRS} prompts a step, {options.steps} steps a round, one thread")
        print(f"mix: {lengths_of(mixed)}")
        chosen = choose(mixed, options)
        found = compare(mixed, chosen, shape, options.rounds)
        if REAL.is_file() and not options.tiny:
            real = make_material(folder / "real", shape, options.steps, real=True)
            print(f"\nreal lengths ({REAL.name}): {lengths_of(real)}")
            found |= {f"{key}_real": value for key, value in compare_briefly(real, chosen, shape, options.rounds).items()}
        else:
            print(f"\n{REAL.name} is not there or --tiny: real lengths not measured")
        if not options.quick:
            found |= growth(mixed, chosen.ours)
    print(json.dumps(found))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 M parameters, one step a round, settings as in sides.py")
    parser.add_argument("--tiny", action="store_true", help="for trying the code")
    parser.add_argument("--rounds", type=int, help="turns of each side")
    parser.add_argument("--steps", type=int, help="of 8 prompts, a round")
    parser.add_argument("--budget-mb", type=float, default=4000, help="a side's peak above its imported libraries")
    parser.add_argument("--profile", action="store_true", help="print where our steps' time goes, and nothing else")
    options = parser.parse_args()
    options.quick = options.quick or options.tiny
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.steps = options.steps or (1 if options.quick else 2)
    return options


def make_material(folder: Path, shape: Shape, steps: int, real: bool, longest: int = 500) -> Material:
    """Prompts with K responses, and the same prompts with the first two."""
    folder.mkdir()
    lengths = real_lengths(steps * PAIRS, K) if real else mixed_lengths(steps * PAIRS, K, longest)
    everything = make_steps(lengths, shape.vocabulary)
    pairs = [[Asked(one.prompt, one.responses[:2], [1.0, 0.0]) for one in step] for step in everything]
    return Material(folder, folder.parent / "policy", pairs, everything)


def described(shape: Shape, parameters: int) -> str:
    return (
        f"Llama of {parameters / 1e6:.1f} M parameters ({shape.layers} layers, {shape.width} wide, {shape.heads} heads, "
        f"MLP {shape.inner}, vocabulary {shape.vocabulary}, embeddings tied), random weights"
    )


def lengths_of(material: Material) -> str:
    asked = [one for step in material.everything for one in step]
    prompts, answers = [len(one.prompt) for one in asked], [len(each) for one in asked for each in one.responses]
    return (
        f"{len(asked)} prompts of {min(prompts)} to {max(prompts)} tokens (mean {np.mean(prompts):.0f}), "
        f"responses of {min(answers)} to {max(answers)} (mean {np.mean(answers):.0f})"
    )


def choose(material: Material, options: argparse.Namespace) -> Chosen:
    """The fastest settings of each side within the memory budget; one step each, which is enough to tell them apart."""
    there = sides.TRL.is_file()
    if not there:
        print("TRL is not measured: build/rivals/trl is not there, type `make bench-rivals`")
    if options.quick:
        return Chosen(OURS, sides.RELEASED_TRIED[0], sides.TRL_TRIED[1] if there else None)
    first = material.first_step(material.folder / "search")
    print(f"\nsettings tried, one step each: {'':33}{'CPU-s a pair':>14}{'peak, MB':>10}")

    def best(ways: tuple[Way, ...]) -> Way:
        tried = []
        for way in ways:
            tried.append((way, sides.measure_once(first, way)))
            print(f"{way.name:64}{tried[-1][1].cpu_per_pair:>14.3f}{tried[-1][1].memory:>10.0f}", flush=True)
        return sides.fastest(tried, options.budget_mb)

    return Chosen(best(sides.OURS_TRIED), best(sides.RELEASED_TRIED), best(sides.TRL_TRIED) if there else None)


def compare(material: Material, chosen: Chosen, shape: Shape, rounds: int) -> Numbers:
    """All sides on one mix of lengths: speed, memory, all K responses, and the floor."""
    ours = chosen.ours
    ways = {
        "ours": ours.changed(ours.name + ", sampler's reference"),
        "recomputed": ours.changed(ours.name + ", reference recomputed", reference="recompute"),
        "stage": ours.changed("the same under DeepSpeed, as the stage runs it", engine="deepspeed"),
        "small": ours.changed("ours, 2048 tokens, activations recomputed", tokens_per_device=2048, recompute=True),
        "all": Way(f"{ours.name}, all K = {K}", "ours", ours.settings, all_responses=True),
        "released": chosen.released,
        "as_released": RELEASED,
    }
    if chosen.trl is not None:
        ways |= {"trl": chosen.trl, "shipped": SHIPPED}
    found = run(material, ways, rounds)
    peak = measured_peak("bfloat16")
    flops = useful_flops(material, shape_of(shape.config().to_dict()))
    numbers = speed_ratios(found) | {
        "stage_share": ratio(found["ours"].cpu_per_pair, found["stage"].cpu_per_pair),
        "all_k": ratio(found["ours"].cpu_per_pair / 2, found["all"].cpu_per_pair / K),
        "all_k_limit": ratio(flops["pairs"] / 2, flops["all"] / K),
        "floor_fraction": ratio(flops["pairs"] / peak, found["ours"].cpu_per_pair),
        "matmul_gflops": round(peak / 1e9, 1),
    }
    table(found, {key: flops["all" if key == "all" else "pairs"] / peak for key in found})
    print(
        f"floor: {flops['pairs'] / 1e9:.1f} useful GFLOP a pair at {peak / 1e9:.0f} GFLOP/s, bf16 products of 1024 x 1024 in "
        "this run; all_k_limit: what sharing the prompt could bring at most with these lengths"
    )
    return numbers | memory_ratios(found)


def compare_briefly(material: Material, chosen: Chosen, shape: Shape, rounds: int) -> Numbers:
    """The ratios alone, on another mix."""
    ours = chosen.ours
    ways = {
        "ours": ours.changed(ours.name + ", sampler's reference"),
        "recomputed": ours.changed(ours.name + ", reference recomputed", reference="recompute"),
        "released": chosen.released,
        "as_released": RELEASED,
    }
    if chosen.trl is not None:
        ways |= {"shipped": SHIPPED}
    found = run(material, ways, rounds)
    peak = measured_peak("bfloat16")
    floor = useful_flops(material, shape_of(shape.config().to_dict()))["pairs"] / peak
    table(found, dict.fromkeys(found, floor))
    return speed_ratios(found) | {"floor_fraction": ratio(floor, found["ours"].cpu_per_pair)}


def run(material: Material, ways: dict[str, Way], rounds: int) -> dict[str, Side]:
    """Every way's side, measured in turns."""
    found = {key: material.side(way) for key, way in ways.items()}
    sides.take_turns(list(found.values()), len(material.pairs), rounds)
    return found


def ratio(one: float, other: float) -> float:
    return round(one / other, 3)


def speed_ratios(found: dict[str, Side]) -> Numbers:
    """CPU-seconds a pair of a rival over ours."""
    rivals = {"reference": "released", "reference_as_released": "as_released", "trl": "shipped", "trl_best": "trl"}
    numbers: Numbers = {}
    for name, key in rivals.items():
        if key in found:
            numbers[f"vs_{name}"] = ratio(found[key].cpu_per_pair, found["ours"].cpu_per_pair)
            numbers[f"vs_{name}_recomputed"] = ratio(found[key].cpu_per_pair, found["recomputed"].cpu_per_pair)
    return numbers


def memory_ratios(found: dict[str, Side]) -> Numbers:
    """With recomputed activations on all sides, which both rivals have as they come: our peak over the smaller of theirs, and
    our speed over the faster of theirs."""
    rivals = [found[key] for key in ("as_released", "shipped") if key in found]
    small = found["small"]
    return {
        "memory_fraction": ratio(small.memory, min(rival.memory for rival in rivals)),
        "vs_activations_recomputed": ratio(min(rival.cpu_per_pair for rival in rivals), small.cpu_per_pair),
    }


def useful_flops(material: Material, shape: ModelShape) -> dict[str, float]:
    """Of a prompt with a pair, and with all K responses, on average."""

    def each(steps: list[list[Asked]]) -> float:
        lengths = [(len(one.prompt), [len(answer) for answer in one.responses]) for step in steps for one in step]
        return training_flops(shape, lengths) / len(lengths)

    return {"pairs": each(material.pairs), "all": each(material.everything)}


def table(found: dict[str, Side], floors: dict[str, float]) -> None:
    """A row a side, of its best round: what else runs on a machine only ever slows one."""
    ours = found["ours"]
    print(
        f"\n{'a prompt with its responses':64}{'CPU-s':>8}{'wall, s':>9}{'floor':>7}{'it / ours':>11}{'resp./CPU-s':>13}"
        f"{'peak, MB':>10}{'loss':>11}"
    )
    for key, side in found.items():
        each = side.responses / side.pairs
        print(
            f"{side.name:64}{side.cpu_per_pair:>8.3f}{side.wall_per_pair:>9.3f}{floors[key] / side.cpu_per_pair:>7.0%}"
            f"{side.cpu_per_pair / ours.cpu_per_pair:>11.2f}{each / side.cpu_per_pair:>13.2f}{side.memory:>10.0f}"
            f"{side.losses[-1]:>11.3f}"
        )
    print("loss: of the last step, on the paper's scale; equal but for rounding where the steps were equal")
    print("peak: above the imported libraries, so weights, frozen copy, gradients, optimizer and activations")


def growth(material: Material, way: Way) -> Numbers:
    """How a step's cost grows with its prompts, and with their responses: slopes of log CPU-seconds over log number."""
    batch = material.everything[0]
    pairs = [Asked(one.prompt, one.responses[:2], [1.0, 0.0]) for one in batch]
    doubled = [
        [Asked(one.prompt, one.responses[:2] * times, [1 - k / (2 * times - 1) for k in range(2 * times)]) for one in batch]
        for times in (2, 4)
    ]
    folder = material.folder / "growth"
    folder.mkdir()
    steps = [pairs, pairs * 2, pairs * 4, *doubled]
    side = Material(folder, material.policy, steps, steps).side(way)
    sides.take_turns([side], len(steps), 2)
    two, four, twice, fourfold, one = np.min(side.each, axis=0)  # the first step warmed up, so it comes last

    def slope(seconds: list[float]) -> float:
        return round(float(np.polyfit(np.log([1, 2, 4]), np.log(seconds), 1)[0]), 3)

    print(f"\n{'CPU-s a step':32}{'1x':>9}{'2x':>9}{'4x':>9}{'slope':>8}")
    found = {}
    for name, seconds in (("prompts", [one, two, four]), ("responses", [one, twice, fourfold])):
        found[f"slope_{name}"] = slope(seconds)
        print(
            f"{name + ' (1x: 8 with 2 responses)':32}"
            + "".join(f"{each:>9.2f}" for each in seconds)
            + f"{slope(seconds):>8.2f}"
        )
    return found


def profile(material: Material) -> None:
    """Where our steps' CPU time goes, by operation."""
    report = material.folder / "profile.json"
    side = material.side(OURS.changed("profile", profile=str(report)))
    with side.log.open("w") as log:
        subprocess.run(
            [str(word) for word in side.command], check=True, stderr=log, env=os.environ | {"PYTHONPATH": str(sides.ROOT)}
        )
    events = json.loads(report.read_text(encoding="utf-8"))
    whole = sum(seconds for _, seconds, _ in events)
    print(f"{whole:.2f} CPU-s in {len(material.pairs)} steps of {PAIRS} pairs, under torch's profiler")
    for name, seconds, calls in events[:20]:
        print(f"{name[:60]:62}{seconds:>8.3f} s{seconds / whole:>8.1%}{calls:>8} calls")


if __name__ == "__main__":
    main()
