"""log pi_t(y|x) from the sampler: the sum of the log-probs that generation stored, and the audit that says it serves.

They are raw model log-probs, before temperature and top-p, so they are pi_t's. What differs is rounding: another engine, other
kernels, another precision. A reference off by 0.5 nat against targets of 100 nats changes a gradient by 0.5 %.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.errors import TrainError
from sppo.fingerprint import seed_of
from sppo.recipe import Training
from sppo.train.examples import Examples

Array = npt.NDArray[np.float64]

COLUMNS = ("prompt_id", "k", "logprobs")
"""Of responses: all that is read here."""
ROUNDING = 1e-3
"""Nats that a log-prob may be above 0."""


def sampler_reference(examples: Examples, responses: pa.Table) -> Array:
    """log pi_t(y|x) of every selected response, as the sampler had it: (R,) sums over tokens in nats, float64.

    responses: rows with COLUMNS. A response that was cut at training.max_tokens is cut the same way here.
    Raises TrainError for a response without log-probs of its tokens, or with one that is no finite log-prob."""
    stored = _logprobs(responses, {prompt.prompt_id for prompt in examples.prompts})
    found: list[float] = []
    for prompt in examples.prompts:
        for response in prompt.responses:
            values = stored.get((prompt.prompt_id, response.k), [])[: len(response.token_ids)]  # (T,)
            _check(prompt.prompt_id, response.k, values, len(response.token_ids))
            found.append(math.fsum(values))
    return np.array(found, np.float64)


def audited_rows(examples: Examples, training: Training, seed: int, iteration: int) -> list[int]:
    """Rows whose log pi_t is computed again: the first `reference_audit` by sha256 of seed, iteration, prompt id and k."""
    keys = [
        (seed_of("reference-audit", seed, iteration, prompt.prompt_id, response.k), response.row)
        for prompt in examples.prompts
        for response in prompt.responses
    ]
    return sorted(row for _, row in sorted(keys)[: training.reference_audit])


def audit(
    examples: Examples,
    reference: Array,
    recompute: Callable[[Sequence[int]], Array],
    training: Training,
    seed: int,
    iteration: int,
) -> dict[str, float]:
    """How far the sampler's log pi_t is from the training code's, on `audited_rows`: metrics for the manifest, in nats.

    reference: (R,); recompute: from rows to their log pi_t by the weights before any update, a forward pass without gradients.
    Under several ranks all call this together, and `recompute` gives each of them every value.
    Raises TrainError if a response's |difference| is above `reference_tolerance`."""
    rows = audited_rows(examples, training, seed, iteration)
    again = np.asarray(recompute(rows), np.float64)  # (A,)
    if again.shape != (len(rows),) or not np.isfinite(again).all():
        raise TrainError(
            f"{again.size} recomputed log-probs for {len(rows)} audited responses, {int((~np.isfinite(again)).sum())} not "
            "finite; expected one finite number each: check the policy's weights"
        )
    differences = np.abs(reference[rows] - again)  # (A,)
    worst = int(differences.argmax())
    if differences[worst] > training.reference_tolerance:
        owners = [(prompt.prompt_id, response) for prompt in examples.prompts for response in prompt.responses]
        prompt_id, response = owners[rows[worst]]
        raise TrainError(
            f"log pi_t of prompt {prompt_id!r}, response {response.k} ({len(response.token_ids)} tokens) is "
            f"{reference[rows[worst]]:.3f} nats from the sampler and {again[worst]:.3f} recomputed; they differ by "
            f"{differences[worst]:.3f}, the most of {len(rows)} audited (mean {differences.mean():.3f}), and "
            f"training.reference_tolerance is {training.reference_tolerance:g}: set training.reference to recompute, or raise "
            "the tolerance if eta is large against it"
        )
    return {
        "reference_audited": float(len(rows)),
        "reference_mean_difference": float(differences.mean()),
        "reference_p95_difference": float(np.quantile(differences, 0.95)),
        "reference_largest_difference": float(differences[worst]),
    }


def _logprobs(responses: pa.Table, prompt_ids: set[str]) -> dict[tuple[str, int], list[float]]:
    """Stored log-probs by (prompt id, k); a column of nulls, or a null row, is a response without any."""
    if "logprobs" not in responses.column_names:
        raise TrainError("the responses have no log-probs; generate again, or set training.reference to recompute")
    columns = (responses["prompt_id"].to_pylist(), responses["k"].to_pylist(), responses["logprobs"])
    return {(name, k): values.as_py() or [] for name, k, values in zip(*columns, strict=True) if name in prompt_ids}


def _check(prompt_id: str, k: int, values: list[float], tokens: int) -> None:
    if len(values) < tokens:
        raise TrainError(
            f"prompt {prompt_id!r}, response {k} has {len(values)} log-probs for {tokens} tokens; expected one each: generate "
            "again, or set training.reference to recompute"
        )
    for place, value in enumerate(values):
        if value is None or not math.isfinite(value) or value > ROUNDING:
            raise TrainError(
                f"log-prob {place} of prompt {prompt_id!r}, response {k} is {value}; expected a finite number of at most 0: "
                "generate again, or set training.reference to recompute"
            )
