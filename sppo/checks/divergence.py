"""How far a policy has moved: KL(pi_t || pi_s) by Monte Carlo, from log-probs of pi_t's own answers. M answers, T tokens each.

    log-ratio      sum_i  d_i                      d_i = log pi_t(y_i | x, y_<i) - log pi_s(y_i | x, y_<i)
    low variance   sum_i  exp(-d_i) - 1 + d_i

The means over answers of both estimate KL(pi_t || pi_s) of an answer without bias if the answers are plain draws from pi_t:
after every beginning exp(-d_i) has the mean 1. The second is never negative and varies less while the policies are close
(Schulman 2020, "Approximating KL Divergence", there k1 and k3). It is summed token by token: of whole answers, exp(-sum d_i)
has no usable variance. Both depend on tokens that pi_t seldom draws and pi_s often: where few answers hold any, the first is
too high, the second too low, and both intervals too narrow. So both are given; far apart, they say that more answers are
needed.

Answers drawn at another temperature than 1, or with top-p below 1, are no plain draws. The mean log-ratio is then how much
likelier pi_t finds them than pi_s does, which is no KL divergence, and the second is biased, so it is left out. An answer that
was cut counts up to where it was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.checks.resampling import Ratio, Resampled, resampled, sums
from sppo.errors import EvaluationError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Of pi_t from another policy, in nats."""

    log_ratio: Resampled
    """An answer."""
    low_variance: Resampled | None
    """An answer; None if the answers are no plain draws from pi_t."""
    per_token: Resampled
    """log-ratio of all answers over their tokens."""


def divergence(
    own: Sequence[Array], other: Sequence[Array], owners: npt.NDArray[np.int64], plain: bool, resamples: int, seed: int
) -> Divergence:
    """KL(pi_t || pi_s) from the tokens' log-probs, before temperature and top-p, of M answers that pi_t drew.

    own: (M,) of (T,) log pi_t; other: the same of log pi_s; owners: (M,) the prompt of each; plain: drawn at temperature 1 and
    top-p 1.
    Raises EvaluationError for an answer without a finite log-prob of every token under both."""
    prompts = int(owners.max()) + 1
    lengths = np.array([len(each) for each in own])  # (M,)
    for row, (mine, theirs) in enumerate(zip(own, other, strict=True)):
        if len(mine) != len(theirs) or not np.isfinite(mine).all() or not np.isfinite(theirs).all():
            raise EvaluationError(
                f"answer {row} of {len(own)} has {len(mine)} log-probs by its own policy and {len(theirs)} by the other; "
                "expected a finite one each for every token: score the samples again"
            )
    gaps = np.concatenate([*own]) - np.concatenate([*other])  # (all tokens,)
    prompt = np.repeat(owners, lengths)  # (all tokens,)
    answers = sums(np.ones(len(own)), owners, prompts)  # (N,)
    log_ratios = sums(gaps, prompt, prompts)  # (N,)
    ratios = {
        "log_ratio": Ratio(log_ratios, answers),
        "per_token": Ratio(log_ratios, sums(lengths.astype(np.float64), owners, prompts)),
    }
    if plain:
        ratios["low_variance"] = Ratio(sums(np.expm1(-gaps) + gaps, prompt, prompts), answers)
    found = resampled(ratios, resamples, seed)
    return Divergence(found["log_ratio"], found.get("low_variance"), found["per_token"])


def read_divergence(
    samples: pa.Table, scores: pa.Table, prompt_ids: Sequence[str], plain: bool, resamples: int, seed: int
) -> Divergence:
    """The same from pi_t's `Response` rows and rows of (prompt_id, k, logprobs): the same answers' log-probs under pi_s.

    Raises EvaluationError for answers that were not scored."""
    place = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    theirs = _logprobs(scores)
    mine = _logprobs(samples)
    missing = sorted(mine.keys() - theirs.keys())
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(mine)} answers were not scored by the other policy, the first {missing[0]}; "
            "expected all: delete the score artifact and run again"
        )
    owners = np.array([place[prompt_id] for prompt_id, _ in mine], dtype=np.int64)
    return divergence(list(mine.values()), [theirs[key] for key in mine], owners, plain, resamples, seed)


def _logprobs(rows: pa.Table) -> dict[tuple[str, int], Array]:
    columns = (rows["prompt_id"].to_pylist(), rows["k"].to_pylist(), rows["logprobs"].to_pylist())
    return {(prompt_id, k): np.array(values, np.float64) for prompt_id, k, values in zip(*columns, strict=True)}
