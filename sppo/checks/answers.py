"""One policy's held-out answers: how long, and how often cut, empty, refusing, repeating or looping. N prompts, M answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.checks.resampling import Ratio, Resampled, per_prompt, resampled_quantiles
from sppo.checks.texts import distinct, ends_in_loop, repetition
from sppo.errors import EvaluationError
from sppo.hygiene import is_empty, opens_with_refusal
from sppo.recipe.evaluation import Checks

Array = npt.NDArray[np.float64]

QUANTILES = {"median": 0.5, "p95": 0.95}
DISTINCT = (1, 2)
"""n of the distinct-n that are measured."""


@dataclass(frozen=True)
class Answers:
    """What one policy answered, prompt by prompt, and in the order of k within each."""

    prompts: int
    """N."""
    owners: npt.NDArray[np.int64]
    """(M,) the prompt's place among the N."""
    texts: tuple[str, ...]
    """(M,)."""
    tokens: Array | None = None
    """(M,) stop token included; None for texts of another's making."""
    cut: Array | None = None
    """(M,) 1 if cut at max_tokens."""

    @property
    def characters(self) -> Array:
        """(M,)."""
        return np.array([len(text) for text in self.texts], dtype=np.float64)

    def by_prompt(self) -> list[list[int]]:
        """Rows of each prompt's answers, in the order of k."""
        rows: list[list[int]] = [[] for _ in range(self.prompts)]
        for row, owner in enumerate(self.owners.tolist()):
            rows[owner].append(row)
        return rows


def prompts_of(samples: pa.Table) -> list[str]:
    """Prompt ids of `Response` rows, in the order of first appearance."""
    return list(dict.fromkeys(samples["prompt_id"].to_pylist()))


def read_answers(samples: pa.Table, prompt_ids: Sequence[str]) -> Answers:
    """`Response` rows in the order of these prompts and of k.

    Raises EvaluationError if they answer other prompts than these."""
    place = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    asked = samples["prompt_id"].to_pylist()
    apart = sorted(set(asked) ^ place.keys())
    if apart:
        raise EvaluationError(
            f"{len(apart)} of {len(place)} held-out prompts were answered by one policy and not by another, the first "
            f"{apart[0]}; expected the same prompts: sample all policies with one recipe"
        )
    owners = np.array([place[prompt_id] for prompt_id in asked], dtype=np.int64)
    order = np.lexsort((samples["k"].to_numpy(), owners))  # (M,) by prompt, then by k
    texts = samples["text"].to_pylist()
    return Answers(
        prompts=len(prompt_ids),
        owners=owners[order],
        texts=tuple(texts[row] for row in order.tolist()),
        tokens=samples["token_ids"].combine_chunks().value_lengths().to_numpy().astype(np.float64)[order],
        cut=(np.array(samples["finish_reason"].to_pylist()) == "length").astype(np.float64)[order],
    )


def answer_ratios(answers: Answers, checks: Checks) -> dict[str, Ratio]:
    """Means and shares by name: characters, tokens, cut, empty, refusals, repetition, loops, distinct_1, distinct_2."""
    texts = answers.texts
    rows: dict[str, Array | None] = {
        "characters": answers.characters,
        "tokens": answers.tokens,
        "cut": answers.cut,
        "empty": np.array([is_empty(text) for text in texts], np.float64),
        "refusals": np.array([opens_with_refusal(text) for text in texts], np.float64),
        "repetition": np.array([repetition(text) for text in texts], np.float64),
        "loops": np.array([ends_in_loop(text) for text in texts], np.float64),
    }
    found = {name: per_prompt(values, answers.owners, answers.prompts) for name, values in rows.items() if values is not None}
    for n in DISTINCT:
        values = distinct(texts, answers.owners, answers.prompts, n, checks.distinct_words)  # (N,)
        if values is not None:
            found[f"distinct_{n}"] = per_prompt(values, np.arange(answers.prompts), answers.prompts)
    return found


def length_quantiles(answers: Answers, resamples: int, seed: int) -> Mapping[str, Resampled]:
    """Median and 95th percentile of the length, in characters and in tokens: `characters_median` and so on."""
    found: dict[str, Resampled] = {}
    for unit, values in (("characters", answers.characters), ("tokens", answers.tokens)):
        if values is not None:
            shares = tuple(QUANTILES.values())
            numbers = resampled_quantiles(values, answers.owners, answers.prompts, shares, resamples, seed)
            found |= {f"{unit}_{name}": number for name, number in zip(QUANTILES, numbers, strict=True)}
    return found
