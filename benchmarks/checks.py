"""Checks: the texts of seven published models, 805 answers each, and all that is done with a judge's verdicts on them.

    .venv/bin/python benchmarks/checks.py [--quick] [--answers FILE.parquet]

The answers are AlpacaEval's, a column a model. The judge costs nothing: it prefers the longer answer, so its win rates say what
length alone would win against GPT-4 Turbo, and its win rates at equal length must be 1/2. Last line: one JSON object.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from sppo.checks import Answers, policy_measures
from sppo.checks.duels import DuelMeasures, measure_duel
from sppo.checks.matrices import matrix_ratios
from sppo.checks.resampling import Resampled, resampled
from sppo.judges import Judge, Logits, Match, questions, spread
from sppo.preferences import read_verdicts
from sppo.progress import Report, silent
from sppo.recipe.evaluation import Checks
from sppo.records import Comparison, Duel, to_table
from sppo.statistics import RESAMPLES

ANSWERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "alpaca_eval_responses.parquet"
BASELINE = "gpt4_1106_preview"
STRENGTH = 2.0
"""Logit of twice the length."""
SHARES = ("refusals", "repetition", "loops", "empty", "distinct_1", "distinct_2")


class LengthJudge(Judge):
    """L_ij = STRENGTH * log2(characters of i / characters of j)."""

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        return [spread(match, {pair: self._logit(*pair) for pair in questions(match)}) for match in matches]

    def _logit(self, first: str, second: str) -> float:
        return STRENGTH * math.log2((len(first) + 1) / (len(second) + 1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 resamples instead of 10,000")
    parser.add_argument("--answers", type=Path, default=ANSWERS)
    options = parser.parse_args()
    if not options.answers.is_file():
        print(f"checks: {options.answers.name} is not here; nothing was measured")
        print(json.dumps({}))
        return
    resamples = 1_000 if options.quick else RESAMPLES
    table = pq.read_table(options.answers)
    models = {name: tuple(table[name].to_pylist()) for name in table.column_names if name not in ("instruction", "dataset")}
    answers = {name: Answers(len(texts), np.arange(len(texts)), texts) for name, texts in models.items()}
    started = time.perf_counter()
    numbers = {name: policy_measures(each, Checks(), resamples, 0) for name, each in answers.items()}
    texts_s = time.perf_counter() - started
    matches = as_matches(table["instruction"].to_pylist(), list(models.values()))
    duels, matrices, pairs = judged(matches, answers, resamples)
    judging_s = time.perf_counter() - started - texts_s
    report(numbers, duels, matrices, resamples)
    print(f"texts {texts_s:.1f} s, {pairs:,} ordered pairs judged, stored, read and measured {judging_s:.1f} s")
    print(json.dumps({"seconds": round(texts_s + judging_s, 2), "texts": round(texts_s, 2), "judging": round(judging_s, 2)}))


def as_matches(instructions: Sequence[str], models: Sequence[Sequence[str]]) -> list[Match]:
    """One match an instruction: all models' answers, all ordered pairs."""
    count = len(models)
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    return [
        Match(str(number), [{"role": "user", "content": text}], [texts[number] for texts in models], pairs)
        for number, text in enumerate(instructions)
    ]


def judged(
    matches: Sequence[Match], answers: dict[str, Answers], resamples: int
) -> tuple[dict[str, DuelMeasures], dict[str, Resampled], int]:
    """Duels of each model against the baseline, the K x K matrices' numbers, and how many pairs were judged."""
    count, names = len(answers), list(answers)
    squares = []  # (K, K) of each prompt
    for match, logits in zip(matches, LengthJudge().judge(matches, silent), strict=True):
        square = np.zeros((count, count), np.float32)
        square[tuple(np.array(match.pairs).T)] = logits
        squares.append(square)
    rows = [Comparison(match.prompt_id, count, square.ravel().tolist()) for match, square in zip(matches, squares, strict=True)]
    groups = read_verdicts(to_table(Comparison, rows), {match.prompt_id: match.responses for match in matches})
    matrices = resampled(matrix_ratios(groups, Checks().near_tie), resamples, 0)
    prompt_ids, at = [match.prompt_id for match in matches], names.index(BASELINE)
    duels = {
        name: measure_duel(
            duel_rows(prompt_ids, squares, place, at),
            prompt_ids,
            each,
            answers[BASELINE],
            Checks().matched_length,
            resamples,
            0,
        )
        for place, (name, each) in enumerate(answers.items())
        if name != BASELINE
    }
    return duels, matrices, len(matches) * count * (count - 1)


def duel_rows(prompt_ids: Sequence[str], squares: Sequence[np.ndarray], new: int, other: int) -> pa.Table:
    """`Duel` rows of one answer against one."""
    return to_table(
        Duel,
        [
            Duel(prompt_id, 1, 1, [float(square[new, other])], [float(square[other, new])])
            for prompt_id, square in zip(prompt_ids, squares, strict=True)
        ],
    )


def report(
    numbers: dict[str, dict[str, Resampled]], duels: dict[str, DuelMeasures], matrices: dict[str, Resampled], resamples: int
) -> None:
    """The table: shares in percent, 95 % intervals over prompts."""
    prompts = next(iter(numbers.values()))["characters"].n
    print(
        f"checks: {len(numbers)} models x {prompts} answers, {resamples:,} resamples of the prompts, {os.cpu_count()} CPU(s); "
        "95 % intervals, lengths in characters, shares in %\n"
    )
    head = ["model", "mean", "median", "p95", *SHARES, "length alone wins", "at equal length", "matched"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, found in numbers.items():
        cells = [name, *(shown(found[f"characters{end}"], 1, 0) for end in ("", "_median", "_p95"))]
        cells += [shown(found[each], 100, 1) for each in SHARES]
        if name in duels:
            duel = duels[name]
            equal = "" if duel.equal_length is None else shown(duel.equal_length, 100, 1)
            cells += [shown(duel.win_rate, 100, 1), equal, f"{100 * duel.matched:.0f}"]
        else:
            cells += ["", "", ""]
        print(f"| {' | '.join(cells)} |")
    told = ", ".join(f"{name.replace('_', ' ')} {shown(number, 100, 1)} %" for name, number in matrices.items())
    print(f"\nof the {len(numbers)} x {len(numbers)} matrices: {told}")


def shown(number: Resampled, scale: float, places: int) -> str:
    """A number with its interval."""
    found = number.interval()
    return f"{scale * found.value:.{places}f} [{scale * found.low:.{places}f}, {scale * found.high:.{places}f}]"


if __name__ == "__main__":
    main()
