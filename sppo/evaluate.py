"""Did it get better? Held-out win rates of the newest policy against every one before it, under each judge.

Every interval is a bootstrap over prompts (`sppo.statistics`), and both policies answer the same resampled prompts.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.errors import EstimateError
from sppo.estimate import sigmoid
from sppo.fingerprint import seed_of
from sppo.recipe import Recipe
from sppo.stages import stage_identity
from sppo.statistics import mean_interval
from sppo.store import Artifact, Outcome, Step, Workspace

Array = npt.NDArray[np.float64]

WIN_RATES = pa.schema(
    [
        pa.field("prompt_id", pa.string(), False),
        pa.field("judge", pa.string(), False),
        pa.field("against", pa.int32(), False),
        pa.field("win_rate", pa.float64(), False),
    ]
)
"""One row a prompt, judge and earlier policy: what paired comparisons between iterations need."""


def prompt_preferences(duel: pa.Table) -> Iterator[tuple[str, Array]]:
    """P(new_i > other_j) of each prompt, (n, m) in [0, 1]; nan for a pair without a verdict in both orders.

    duel rows: forward (n*m) logits of (new, other), backward (m*n) of (other, new); P(a > b) = sigmoid((L_ab - L_ba) / 2).
    Raises EstimateError for an infinite logit."""
    for row in duel.to_pylist():
        first, second = row["first"], row["second"]
        forward = np.asarray(row["forward"], dtype=np.float64).reshape(first, second)  # (n, m)
        backward = np.asarray(row["backward"], dtype=np.float64).reshape(second, first)  # (m, n)
        if np.isinf(forward).any() or np.isinf(backward).any():
            raise EstimateError(
                f"a judge logit of held-out prompt {row['prompt_id']} is infinite: delete the duel artifact and run again"
            )
        yield row["prompt_id"], sigmoid((forward - backward.T) / 2)


def prompt_win_rates(duel: pa.Table) -> tuple[list[str], Array, int]:
    """Chance, prompt by prompt, that an answer of the new policy beats one of the other: the mean of `prompt_preferences`.

    Result: prompt ids, (N,) in [0, 1], and how many pairs had no verdict in one order or both. A prompt without any is left
    out. Raises EstimateError if no pair has a verdict."""
    prompt_ids, rates, left_open = [], [], 0
    for prompt_id, preferences in prompt_preferences(duel):
        judged = preferences[~np.isnan(preferences)]
        left_open += preferences.size - judged.size
        if judged.size:
            prompt_ids.append(prompt_id)
            rates.append(float(judged.mean()))
    if not rates:
        raise EstimateError(
            f"none of {duel.num_rows} held-out prompts has a pair with a verdict in both orders; expected at least one: "
            "delete the duel artifact and run again when the judge's server answers"
        )
    return prompt_ids, np.array(rates), left_open


def mean_with_interval(values: Array, resamples: int, seed: int) -> dict[str, float | int]:
    """`mean`, 95 % bootstrap `low` and `high`, and `n` prompts."""
    found = mean_interval(values, resamples, seed)
    return {"mean": found.value, "low": found.low, "high": found.high, "n": found.n}


def lengths(samples: pa.Table) -> dict[str, float]:
    """Mean and median length in characters, mean tokens, share cut at the limit, of one policy's answers."""
    characters = np.array([len(text) for text in samples["text"].to_pylist()])  # (rows,)
    tokens = samples["token_ids"].combine_chunks().value_lengths().to_numpy()  # (rows,)
    cut = np.array(samples["finish_reason"].to_pylist()) == "length"
    return {
        "mean_characters": float(characters.mean()),
        "median_characters": float(np.median(characters)),
        "mean_tokens": float(tokens.mean()),
        "cut_share": float(cut.mean()),
    }


def judge_names(recipe: Recipe) -> list[str]:
    """A name for each evaluation judge: its kind, numbered from the second of a kind on."""
    names: list[str] = []
    for judge in recipe.evaluation.judges:
        same = sum(name.split(" ")[0] == judge.kind for name in names)
        names.append(judge.kind if same == 0 else f"{judge.kind} {same + 1}")
    return names


def step(recipe: Recipe, iteration: int, samples: Sequence[Artifact], duels: Sequence[Sequence[Artifact]]) -> Step:
    """report.json and win_rates.parquet of pi_t, the policy that `iteration` made.

    samples: held-out answers of pi_0 .. pi_t. duels: [judge][earlier policy], pi_t's answers against theirs."""
    inputs = {f"sample-{number}": sample for number, sample in enumerate(samples)}
    for position, row in enumerate(duels):
        inputs |= {f"duel-{position}-{against}": duel for against, duel in enumerate(row)}

    def run(workspace: Workspace) -> Outcome:
        report, table = evaluation(recipe, iteration, samples, duels)
        workspace.add_table(table, "win_rates.parquet")
        workspace.add_text(json.dumps(report, indent=1, sort_keys=True) + "\n", "report.json")
        return _outcome(report)

    return Step(stage_identity("evaluate", recipe, inputs, {"iteration": iteration}), run)


def evaluation(
    recipe: Recipe, iteration: int, samples: Sequence[Artifact], duels: Sequence[Sequence[Artifact]]
) -> tuple[dict[str, Any], pa.Table]:
    """The report as plain data, and the prompts' win rates behind it."""
    seed = seed_of(recipe.seed, "bootstrap")  # the same resampled prompts for every number, so differences are paired
    judges, tables = [], []
    for position, (name, row) in enumerate(zip(judge_names(recipe), duels, strict=True)):
        against = []
        for other, duel in enumerate(row):
            prompt_ids, rates, left_open = prompt_win_rates(duel.tables())
            win_rate = mean_with_interval(rates, recipe.evaluation.resamples, seed)
            against.append({"iteration": other, "win_rate": win_rate, "unjudged_pairs": left_open})
            tables.append(
                pa.table(
                    {
                        "prompt_id": prompt_ids,
                        "judge": [name] * len(prompt_ids),
                        "against": pa.array([other] * len(prompt_ids), pa.int32()),
                        "win_rate": rates,
                    },
                    schema=WIN_RATES,
                )
            )
        judges.append({"judge": name, "independent": position > 0, "against": against})
    report = {
        "iteration": iteration,
        "judges": judges,
        "lengths": [{"iteration": number, **lengths(sample.tables())} for number, sample in enumerate(samples)],
    }
    return report, pa.concat_tables(tables)


def _outcome(report: dict[str, Any]) -> Outcome:
    first = report["judges"][0]["against"]
    base, previous = first[0]["win_rate"], first[-1]["win_rate"]
    summary = f"win rate {base['mean']:.3f} [{base['low']:.3f}, {base['high']:.3f}] against the base policy"
    if len(first) > 1:
        summary += f", {previous['mean']:.3f} against iteration {first[-1]['iteration']}"
    metrics = {"win_rate_against_base": base["mean"], "win_rate_against_previous": previous["mean"]}
    return Outcome(f"{summary}, {base['n']} held-out prompts", {"prompts": base["n"]}, metrics)
