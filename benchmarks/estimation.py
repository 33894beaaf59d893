"""Estimation: from judgements to training targets, against the steps of the released compute_prob.py.

    .venv/bin/python benchmarks/estimation.py [--quick] [--rounds N]

20,000 prompts x 5 responses. The released steps are written out here as that script does them (uclaml/SPPO): a Python loop over
K x K for each prompt, then a pandas frame asked row by row. They start from scores that its ranking has reduced already; ours
start from the raw logits of all ordered pairs. Both run in memory, no files, and must agree. Last line: one JSON object.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from sppo.estimate import Rule, targets
from sppo.hygiene import Traits, find_traits
from sppo.recipe import Estimator, Recipe, load_recipe
from sppo.records import SCHEMAS, Comparison

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, RESPONSES, WORDS = 20_000, 5, 300
RULES: tuple[Rule, ...] = ("bradley_terry", "pairwise", "prob_mean")
TRAIT_PROMPTS = 2_000
"""Traits are found on a tenth of the prompts: their texts alone would take longer to make than everything else here."""

Array = npt.NDArray[np.float64]


@dataclass
class Side:
    """One way to targets."""

    name: str
    run: Callable[[], Any]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    logits = judge_logits(PROMPTS)  # (N, K, K)
    comparisons = as_rows(logits)
    recipe = load_recipe("gemma-2-9b-it", ROOT / "deployments" / "recipes")
    traits = without_traits(PROMPTS)
    scores = (logits - logits.transpose(0, 2, 1)).mean(axis=2)  # (N, K), what the released ranking hands on
    answers = [[f"answer {k} to prompt {number}" for k in range(RESPONSES)] for number in range(PROMPTS)]
    sides = [Side("released compute_prob.py, in memory", lambda: released_steps(scores, answers))]
    sides += [Side(f"ours, {rule}", estimating(recipe, rule, comparisons, traits)) for rule in RULES]
    check_agreement(released_steps(scores[:2000], answers[:2000]), sides[1].run(), recipe)
    for number in range(rounds):
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            take_turn(side)
    report(sides, rounds, trait_seconds())


def judge_logits(prompts: int) -> Array:
    """(N, K, K) fp32 values: qualities apart, a cyclic part, a bias towards what is shown first, and a zero diagonal."""
    draw = np.random.default_rng(0)
    quality = draw.normal(size=(prompts, RESPONSES))
    logits = 1.5 * (quality[:, :, None] - quality[:, None, :]) + draw.normal(size=(prompts, RESPONSES, RESPONSES)) + 0.3
    return np.asarray((logits * (1 - np.eye(RESPONSES))).astype(np.float32), dtype=np.float64)


def as_rows(logits: Array) -> pa.Table:
    """Comparison rows, as `rank` stores them."""
    count = len(logits)
    offsets = np.arange(count + 1, dtype=np.int32)
    flat = pa.array(logits.reshape(-1).astype(np.float32))
    nothing = pa.array([], pa.list_(pa.float32()))
    return pa.table(
        {
            "prompt_id": prompt_ids(count),
            "responses": pa.array(np.full(count, RESPONSES, dtype=np.int32)),
            "logits": pa.ListArray.from_arrays(pa.array(offsets * RESPONSES**2), flat),
            "members": pa.ListArray.from_arrays(pa.array(offsets * 0), nothing),
        },
        schema=SCHEMAS[Comparison],
    )


def prompt_ids(count: int) -> list[str]:
    """As long as those of the published prompts, 64 characters."""
    return [f"{number:064x}" for number in range(count)]


def without_traits(prompts: int) -> Traits:
    """Nothing cut, empty, refused or alike."""
    flags = np.zeros(prompts * RESPONSES, dtype=np.bool_)
    return Traits(flags, flags, flags, np.tile(np.eye(RESPONSES, dtype=np.bool_).ravel(), prompts))


def estimating(recipe: Recipe, rule: Rule, comparisons: pa.Table, traits: Traits) -> Callable[[], pa.Table]:
    """From raw logits to the table of targets, as the stage does it between reading and writing."""
    asked = recipe.model_copy(update={"estimator": Estimator(rule=rule, self_match=True)})
    return lambda: targets(asked, comparisons, traits)


def released_steps(scores: Array, answers: list[list[str]]) -> pd.DataFrame:
    """Scores (N, K) to chosen and rejected answers with their probabilities, step by step as the released script goes."""
    squares = []
    for row in scores:
        square = np.zeros((RESPONSES, RESPONSES))
        for one in range(RESPONSES):
            for other in range(RESPONSES):
                square[one][other] = 1 / (1 + np.exp(row[other] - row[one]))
        squares.append(square.tolist())
    columns = {f"answer_{k}": [each[k] for each in answers] for k in range(RESPONSES)}
    frame = pd.DataFrame({**columns, "square": squares, "scores": list(scores)})
    extremes = frame["scores"].apply(lambda row: (np.array(row).argmax(), np.array(row).argmin()))
    sums = frame["square"].apply(lambda square: np.stack(square).sum(axis=1))
    rows = range(len(frame))
    return pd.DataFrame(
        {
            "chosen": [frame.iloc[number, extremes[number][0]] for number in rows],
            "rejected": [frame.iloc[number, extremes[number][1]] for number in rows],
            "pair": [frame["square"].iloc[number][extremes[number][0]][extremes[number][1]] for number in rows],
            "win": [sums[number][extremes[number][0]] / len(sums.iloc[0]) for number in rows],
            "lose": [sums[number][extremes[number][1]] / len(sums.iloc[0]) for number in rows],
        }
    )


def check_agreement(released: pd.DataFrame, ours: pa.Table, recipe: Recipe) -> None:
    """Raises RuntimeError unless both choose the same answers with the same probabilities, up to prompts that we leave out."""
    frame = ours.to_pandas().iloc[: len(released) * RESPONSES]
    span = frame["win_probability"].to_numpy().reshape(-1, RESPONSES)  # (N, K)
    kept = np.ptp(span, axis=1) > recipe.selection.tie_width  # (N,)
    for role, chosen, probability in (("best", "chosen", "win"), ("worst", "rejected", "lose")):
        rows = frame[frame["role"] == role]
        said = released[kept]
        ks = said[chosen].str.split(" ").str[1].astype(int).to_numpy()
        apart = np.abs(rows["win_probability"].to_numpy() - said[probability].to_numpy()).max()
        if (rows["k"].to_numpy() != ks).any() or apart > 1e-9:
            raise RuntimeError(f"the {role} responses differ from the released steps', or their probabilities by {apart}")


def take_turn(side: Side) -> None:
    """Run a side once."""
    wall, cpu = time.perf_counter(), time.process_time()
    side.run()
    side.wall.append(time.perf_counter() - wall)
    side.cpu.append(time.process_time() - cpu)


def trait_seconds() -> float:
    """To find the traits of 20,000 x 5 responses of 300 words, by those of a tenth."""
    draw = np.random.default_rng(1)
    vocabulary = np.array([f"word{number}" for number in range(20_000)])
    chances = 1 / np.arange(1, len(vocabulary) + 1)
    rows = TRAIT_PROMPTS * RESPONSES
    words = draw.choice(vocabulary, (rows, WORDS), p=chances / chances.sum())  # (R, words)
    responses = pa.table(
        {
            "prompt_id": np.repeat(prompt_ids(TRAIT_PROMPTS), RESPONSES),
            "k": np.tile(np.arange(RESPONSES, dtype=np.int32), TRAIT_PROMPTS),
            "text": [" ".join(row) for row in words],
            "finish_reason": ["stop"] * rows,
        }
    )
    comparisons = as_rows(judge_logits(TRAIT_PROMPTS))
    started = time.perf_counter()
    find_traits(responses, comparisons, 0.95)
    return (time.perf_counter() - started) * PROMPTS / TRAIT_PROMPTS


def report(sides: list[Side], rounds: int, traits: float) -> None:
    """The table and the JSON line, from the best round of each side: what else runs on a machine only ever slows a round."""
    print(
        f"estimation: {PROMPTS:,} prompts x {RESPONSES} responses to {PROMPTS * RESPONSES:,} targets; {os.cpu_count()} CPU(s); "
        f"{rounds} rounds, sides in turn, the best of each side"
    )
    print(f"\n{'':46}{'wall, s':>12}{'CPU, s':>12}{'times faster':>14}")
    reference = min(sides[0].cpu)
    for side in sides:
        print(f"{side.name:46}{min(side.wall):12.3f}{min(side.cpu):12.3f}{reference / min(side.cpu):14.1f}")
    print("both choose the same responses under bradley_terry, their probabilities within 1e-9; ties left out")
    print(
        f"traits of all responses (cut, empty, refusal, alike), once for any number of estimators: {traits:.1f} s, by a tenth"
    )
    slowest = max(sides[1:], key=lambda side: min(side.wall))
    found = {
        "seconds_20k": round(min(slowest.wall), 4),
        "vs_reference": round(min(reference / min(side.cpu) for side in sides[1:]), 1),
        "traits_seconds_20k": round(traits, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
