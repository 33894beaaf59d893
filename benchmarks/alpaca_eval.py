"""AlpacaEval 2's numbers from its own judgements of three models, beside what its leaderboard published.

    .venv/bin/python benchmarks/alpaca_eval.py [--quick]

Judgements, lengths and the leaderboard are AlpacaEval's; the gamed baselines are a reconstruction, so no number here is one to
report. 805 instructions a model, 10,000 refits of the length-controlled rate. Last line: one JSON object.
"""

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy starts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

import numpy as np
import pyarrow.parquet as pq

from sppo.alpaca_eval.annotations import Annotation
from sppo.alpaca_eval.report import measure
from sppo.alpaca_eval.sets import EvaluationSet, GamedBaselines, Question
from sppo.statistics import RESAMPLES

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ANNOTATIONS = SHARED / "alpaca_eval_2_annotations.parquet"
GAMED = SHARED / "alpaca_eval_2_gamed_baselines_reconstructed.parquet"
LEADERBOARD = SHARED / "alpaca_eval_2_leaderboard.csv"
QUESTIONS = EvaluationSet(tuple(Question(f"instruction {n}", "", "") for n in range(805)), "gpt4_1106_preview", "0" * 64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 refits instead of 10,000")
    refits = 1_000 if parser.parse_args().quick else RESAMPLES
    if not ANNOTATIONS.is_file():
        print(f"alpaca_eval: {ANNOTATIONS.name} is not here; nothing was measured")
        return
    gamed = read_gamed()
    published = {row["Unnamed: 0"]: row for row in csv.DictReader(LEADERBOARD.open(encoding="utf-8"))}
    found = {}
    head = ("win rate", "its error", "discrete", "characters", "length-controlled", "its error")
    print(f"{'model':<30}" + "".join(f"{name:>20} " for name in head))
    for model, rows in read_annotations().items():
        started = time.process_time()
        ours, theirs = measure(rows, QUESTIONS, gamed, refits), published[model]
        seconds = time.process_time() - started
        raw, rate = ours.raw, ours.length_controlled_win_rate
        values = {
            "win_rate": (raw.win_rate, theirs["win_rate"]),
            "standard_error": (raw.standard_error, theirs["standard_error"]),
            "discrete_win_rate": (raw.discrete_win_rate, theirs["discrete_win_rate"]),
            "avg_length": (mean_length(model), theirs["avg_length"]),
            "length_controlled": (rate.value, theirs["length_controlled_winrate"]),
            "length_controlled_error": (ours.length_controlled_standard_error, theirs["lc_standard_error"]),
        }
        found[model] = {name: {"ours": one, "published": number(other)} for name, (one, other) in values.items()}
        found[model]["seconds"] = {"cpu": seconds}
        cells = "".join(f"{one:>11.4g} {number(other):<9.4g}" for one, other in values.values())
        print(f"{model:<30}{cells} [{rate.low:.2f}, {rate.high:.2f}], {seconds:.1f} CPU-s")
    print("each pair: ours, then as published")
    print(json.dumps(found))


def number(text: str) -> float:
    """Of the leaderboard; nan where it has none."""
    return float(text or "nan")


def read_annotations() -> dict[str, list[Annotation]]:
    """The judgements by model; the texts are not known, only how long they were."""
    found: dict[str, list[Annotation]] = {}
    for one in pq.read_table(ANNOTATIONS).to_pylist():
        texts = {"output_1": "r" * one["length_baseline"], "output_2": "m" * one["length_model"]}
        row = Annotation(
            instruction=f"instruction {one['index']}",
            generator_1=QUESTIONS.generator,
            generator_2=one["model"],
            annotator="weighted_alpaca_eval_gpt4_turbo",
            preference=one["preference"],
            **texts,
        )
        found.setdefault(one["model"], []).append(row)
    return found


def mean_length(model: str) -> int:
    """Characters, cut to a whole number as published."""
    lengths = [one["length_model"] for one in pq.read_table(ANNOTATIONS).to_pylist() if one["model"] == model]
    return sum(lengths) // len(lengths)


def read_gamed() -> GamedBaselines:
    """The reconstruction."""
    table = pq.read_table(GAMED)
    columns = [table[name].to_numpy().astype(np.float64) for name in ("preference", "std_delta_len", "instruction_difficulty")]
    return GamedBaselines(*columns, positions=table["index"].to_numpy(), sha256="2" * 64)


if __name__ == "__main__":
    main()
