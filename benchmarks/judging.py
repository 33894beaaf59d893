"""Judging: our PairRM against llm-blender's `rank`, same weights, same prompts, one thread.

    .venv/bin/python benchmarks/judging.py [--quick] [--data FILE.parquet] [--shapes small,mid,large]

Three sizes of network, random weights: small (2 layers, 96 wide), mid (6 layers, 384) and large (PairRM's own 24 layers, 1024,
with a smaller vocabulary, which is looked up and never multiplied). The library ranks at batch sizes 1, as the released code
calls it, 4 and 16 where there are so many prompts; it runs in this process, mended for transformers 5 (`sppo.judges.blender`),
and beside it unchanged where `make bench-rivals` has built its environment. Sides take turns; rates are medians over rounds.
Every prompt has two answers, so that a question costs both sides two forward passes. Last line: one JSON object.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch and tokenizers start

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from benchmarks.material.judging import (
    LARGE,
    LIMITS,
    MID,
    REAL,
    SMALL,
    Asked,
    Shape,
    made_questions,
    make_judge,
    question_lengths,
    real_questions,
    train_tokenizer,
    useful_flops,
)
from sppo.hardware import load_hardware
from sppo.judges.blender import BlenderJudge
from sppo.judges.network import NetworkJudge
from sppo.judges.segments import JudgeTokenizer
from sppo.progress import silent
from sppo.recipe import FolderModel, PairRMJudge

ROOT = Path(__file__).resolve().parents[1]
RIVAL = ROOT / "build" / "rivals" / "llm-blender" / "bin" / "python"
SERVER = ROOT / "benchmarks" / "rivals" / "blender_server.py"
HOPELESS = 0.9
"""A setting of the library below this share of its best one's rate takes no further turns."""


@dataclass(frozen=True)
class Plan:
    """How much of a size is measured."""

    shape: Shape
    prompts: int
    rounds: int
    unchanged: bool
    """Whether the library's own environment takes turns too."""

    @property
    def batch_sizes(self) -> list[int]:
        """Of the library, in prompts; the last is all of them where they are fewer than 16."""
        return sorted({1, min(4, self.prompts), min(16, self.prompts)})


FULL = (Plan(SMALL, 16, 3, True), Plan(MID, 8, 2, True), Plan(LARGE, 2, 2, False))
QUICK = (Plan(SMALL, 4, 2, True), Plan(MID, 2, 1, True), Plan(LARGE, 1, 1, False))


@dataclass
class Side:
    """One way to judge the same prompts."""

    name: str
    judge: Callable[[Sequence[Asked]], tuple[float, float]]
    """Result: CPU-seconds and seconds."""
    ours: bool
    cpu: list[float] = field(default_factory=list)
    """Pairs a CPU-second, by round; likewise seconds."""
    wall: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Pairs a CPU-second."""
        return statistics.median(self.cpu)


@dataclass
class Found:
    """What came of a size."""

    plan: Plan
    sides: list[Side]
    asked: list[Asked]
    lengths: list[int]
    """Tokens of each pair."""
    load_s: dict[str, float]
    matmul: list[float] = field(default_factory=list)
    """Floating-point operations a CPU-second of one large product, by round."""
    multiplied: int = 0
    """Tokens that our side computed in a turn."""
    deviations: dict[str, float] = field(default_factory=dict)
    """Largest of P, by precision."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and rounds")
    parser.add_argument("--data", type=Path, default=REAL, help="prompts and answers, as in alpaca_eval_responses.parquet")
    parser.add_argument("--shapes", default="small,mid,large")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    real = options.data.is_file()
    if not real:
        print(f"{options.data.name} is not there: made questions of log-uniform lengths")
    asked = real_questions(options.data) if real else made_questions()
    tokenizer = train_tokenizer(asked[::5], 16_000)
    plans = [plan for plan in (QUICK if options.quick else FULL) if plan.shape.name in options.shapes.split(",")]
    with tempfile.TemporaryDirectory() as name:
        found = [measure(plan, Path(name) / plan.shape.name, tokenizer, asked) for plan in plans]
    report(found, "real" if real else "made")


def measure(plan: Plan, folder: Path, tokenizer: Any, asked: Sequence[Asked]) -> Found:
    """All sides of one size, in turn."""
    short = [Asked(one.prompt[:200], [text[:200] for text in one.answers[:2]]) for one in asked[:4]]
    make_judge(folder, plan.shape, tokenizer, short)
    chosen = choose(asked, plan, JudgeTokenizer(folder / "tokenizer.json"))
    lengths = question_lengths(JudgeTokenizer(folder / "tokenizer.json"), LIMITS, chosen)
    sides, load_s, judges, stop = make_sides(plan, folder)
    found = Found(plan, sides, chosen, lengths, load_s, multiplied=count_tokens(judges["float32"], chosen))
    for side in sides:
        side.judge(short[:1])  # warm
    for number in range(plan.rounds):
        found.matmul.append(matmul_rate(plan.shape))
        for side in promising(sides) if number % 2 == 0 else promising(sides)[::-1]:
            cpu, wall = side.judge(chosen)
            side.cpu.append(len(lengths) / cpu)
            side.wall.append(len(lengths) / wall)
    few = chosen if plan.shape is not LARGE else short[:2]  # fp16 has no fast products on CPU
    found.deviations = deviations(judges, few)
    stop()
    return found


def choose(asked: Sequence[Asked], plan: Plan, tokenizer: JudgeTokenizer) -> list[Asked]:
    """Prompts with two of their answers: drawn by chance, of the largest network those nearest to the median length."""
    draw = random.Random(0)
    drawn = draw.sample(list(asked), len(asked))
    paired = [Asked(one.prompt, draw.sample(one.answers, 2)) for one in drawn]
    if plan.shape is not LARGE:
        return paired[: plan.prompts]
    lengths = question_lengths(tokenizer, LIMITS, paired)[::2]
    median = statistics.median(lengths)
    nearest = sorted(range(len(paired)), key=lambda place: abs(lengths[place] - median))
    return [paired[place] for place in nearest[: plan.prompts]]


def make_sides(plan: Plan, folder: Path) -> tuple[list[Side], dict[str, float], dict[str, NetworkJudge], Callable[[], None]]:
    """Every way to judge, loaded; seconds of loading; our judges by precision; what ends the process of the rival."""
    limits = {"max_source_tokens": LIMITS.source, "max_candidate_tokens": LIMITS.candidate}
    source = FolderModel(kind="folder", path=str(folder))
    recipe = PairRMJudge(kind="pairrm", source=source, **limits)
    tokens = load_hardware("cpu", ROOT / "deployments" / "hardware").rank.tokens_per_batch
    began = time.perf_counter()
    judges = {"float32": NetworkJudge.load(recipe, folder, "cpu", tokens)}
    load_s = {"ours": time.perf_counter() - began}
    for precision in ("bfloat16", "float16"):
        changed = recipe.model_copy(update={"precision": precision})
        judges[precision] = NetworkJudge.load(changed, folder, "cpu", tokens)
    began = time.perf_counter()
    library = BlenderJudge.load(recipe, folder, "cpu")
    load_s["llm-blender"] = time.perf_counter() - began
    sides = [
        Side("ours, fp32", lambda asked: timed(lambda: ours(judges["float32"], asked)), True),
        Side("ours, bf16", lambda asked: timed(lambda: ours(judges["bfloat16"], asked)), True),
    ]
    for size in plan.batch_sizes:
        sides.append(Side(f"llm-blender, batch_size={size}", ranker(library, size), False))
    stop: Callable[[], None] = lambda: None  # noqa: E731
    if plan.unchanged and RIVAL.exists():
        ask, stop = start_rival(folder)
        sides.append(Side("llm-blender, batch_size=1, transformers 4.57.6", ask, False))
    elif plan.unchanged:
        print("llm-blender has no environment of its own: not measured there (make bench-rivals)")
    return sides, load_s, judges, stop


def ours(judge: NetworkJudge, asked: Sequence[Asked]) -> list[np.ndarray]:
    """Logits of all ordered pairs."""
    return judge.judge([one.match(str(number)) for number, one in enumerate(asked)], silent)


def ranker(library: BlenderJudge, size: int) -> Callable[[Sequence[Asked]], tuple[float, float]]:
    """The library's own call."""

    def judge(asked: Sequence[Asked]) -> tuple[float, float]:
        prompts, answers = [one.prompt for one in asked], [list(one.answers) for one in asked]
        return timed(lambda: library.blender.rank(prompts, answers, return_scores=True, batch_size=size))

    return judge


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds and seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def start_rival(folder: Path) -> tuple[Callable[[Sequence[Asked]], tuple[float, float]], Callable[[], None]]:
    """The library in its own environment: how it is asked, and how it is ended."""
    process = subprocess.Popen(
        [str(RIVAL), str(SERVER), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout
    out.readline()  # it has loaded

    def ask(asked: Sequence[Asked]) -> tuple[float, float]:
        request = {"prompts": [one.prompt for one in asked], "answers": [one.answers for one in asked], "batch_size": 1}
        into.write(json.dumps(request) + "\n")
        into.flush()
        answer = json.loads(out.readline())
        return answer["cpu_seconds"], answer["seconds"]

    def stop() -> None:
        into.close()
        process.wait()

    return ask, stop


def promising(sides: Sequence[Side]) -> list[Side]:
    """All sides in the first round; then ours, and the settings of the library that are near its best."""
    rivals = [side.rate for side in sides if side.cpu and not side.ours]
    return [side for side in sides if side.ours or not rivals or side.rate > HOPELESS * max(rivals)]


def matmul_rate(shape: Shape) -> float:
    """Floating-point operations a CPU-second of the network's widest product, 1,024 rows, fp32, for half a second."""
    import torch

    rows, weight, bias = torch.randn(1024, shape.width), torch.randn(shape.inner, shape.width), torch.randn(shape.inner)
    with torch.inference_mode():
        torch.nn.functional.linear(rows, weight, bias)
        done, began = 0, time.process_time()
        while time.process_time() - began < 0.5:
            torch.nn.functional.linear(rows, weight, bias)
            done += 1
        spent = time.process_time() - began
    return done * 2 * rows.shape[0] * shape.width * shape.inner / spent


def count_tokens(judge: NetworkJudge, asked: Sequence[Asked]) -> int:
    """Rows that the encoder's products have in one turn, padding included."""
    encode, seen = judge.encoder.encode, []

    def counting(ids: Any, *rest: Any) -> Any:
        seen.append(ids.numel())
        return encode(ids, *rest)

    judge.encoder.encode = counting  # type: ignore[method-assign]
    ours(judge, asked)
    judge.encoder.encode = encode  # type: ignore[method-assign]
    return sum(seen)


def deviations(judges: dict[str, NetworkJudge], asked: Sequence[Asked]) -> dict[str, float]:
    """Largest change of P = sigmoid((L_ij - L_ji) / 2) from fp32, by precision."""

    def chances(precision: str) -> np.ndarray:
        logits = np.stack(ours(judges[precision], asked)).astype(np.float64)  # (N, 2)
        return 1 / (1 + np.exp(-(logits[:, 0] - logits[:, 1]) / 2))

    exact = chances("float32")
    return {precision: float(np.abs(chances(precision) - exact).max()) for precision in ("float16", "bfloat16")}


def report(found: Sequence[Found], source: str) -> None:
    """Tables and the JSON line."""
    line: dict[str, float] = {}
    for one in found:
        line |= report_size(one, source)
    print(
        "\nuseful operations: of a layer 2 T H (4 H + 2 I) for products with weights, 4 T T H for scores and mixing, 4 T R H\n"
        "with R = min(512, 2 T - 1) for relative positions; of the last layer, keys and values of T tokens and all else of 3.\n"
        "matmul_fraction: theirs a CPU-second, fp32, over those of one product of 1,024 rows with a weight of H x I, measured\n"
        "between the turns. waste: share of the tokens computed that are padding. loading: from a warm page cache, the\n"
        "library's with its import."
    )
    print(json.dumps(line))


def report_size(one: Found, source: str) -> dict[str, float]:
    """The table of a size, and its numbers."""
    shape, name = one.plan.shape, one.plan.shape.name
    best = max((side for side in one.sides if not side.ours), key=lambda side: side.rate)
    ratios = {side.name: side.rate / best.rate for side in one.sides}
    print(
        f"\n{name}: {shape.layers} layers, {shape.width} wide; {len(one.asked)} {source} prompt(s) x 2 answers, "
        f"{len(one.lengths)} pairs of {min(one.lengths)} to {max(one.lengths)} tokens, median "
        f"{statistics.median(one.lengths):.0f}; one thread"
    )
    print(f"{'':48}{'turns':>6}{'pairs/CPU-s':>13}{'pairs/s':>10}{'to the best of llm-blender':>29}")
    for side in one.sides:
        rate, wall = side.rate, statistics.median(side.wall)
        print(f"{side.name:48}{len(side.cpu):>6}{rate:>13.3f}{wall:>10.3f}{ratios[side.name]:>29.2f}")
    flops = sum(useful_flops(shape, tokens) for tokens in one.lengths) / len(one.lengths)
    matmul = statistics.median(one.matmul)
    fraction = flops * one.sides[0].rate / matmul
    waste = 1 - sum(one.lengths) / one.multiplied
    print(
        f"{fraction:.0%} of the matmul rate, {matmul / 1e9:.1f} GFLOP a CPU-second; {waste:.1%} waste; loaded in "
        f"{one.load_s['ours']:.2f} s, llm-blender in {one.load_s['llm-blender']:.2f} s;\nP moves by at most "
        f"{one.deviations['float16']:.1e} in fp16 and {one.deviations['bfloat16']:.1e} in bf16"
        + (" (two short prompts)" if shape is LARGE else "")
    )
    numbers = {name: round(one.sides[0].rate / best.rate, 3), f"{name}_bf16": round(one.sides[1].rate / best.rate, 3)}
    numbers |= {f"{name}_pairs_per_cpu_s": round(one.sides[0].rate, 4), f"{name}_load_s": round(one.load_s["ours"], 3)}
    numbers |= {f"{name}_p_fp16": one.deviations["float16"], f"{name}_p_bf16": one.deviations["bfloat16"]}
    suffix = "" if shape is LARGE else f"_{name}"
    return numbers | {f"matmul_fraction{suffix}": round(fraction, 3), f"padding_waste{suffix}": round(waste, 4)}


if __name__ == "__main__":
    main()
