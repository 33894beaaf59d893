"""One policy's answers against another's under a judge: how often they win, and how often they win at equal length.

N prompts, n answers of the new policy to each and m of the other's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.checks.answers import Answers
from sppo.checks.resampling import Ratio, Resampled, resampled, sums, times_drawn
from sppo.errors import EvaluationError
from sppo.evaluate import prompt_preferences
from sppo.statistics import replicates

Array = npt.NDArray[np.float64]


STRATA = 5
"""Of matched pairs, by how unequal their lengths are."""


@dataclass(frozen=True)
class DuelMeasures:
    """Of one duel."""

    win_rate: Resampled
    """Mean over prompts of P(new > other)."""
    equal_length: Resampled | None
    """The same of answers of matched length; None without pairs in which the new answer is the longer and others in which it is
    the shorter by as much."""
    matched: float
    """Share of judged pairs of different texts that are of matched length."""


def measure_duel(
    duel: pa.Table,
    prompt_ids: Sequence[str],
    new: Answers,
    other: Answers,
    matched_length: float,
    resamples: int,
    seed: int,
) -> DuelMeasures:
    """Win rate, and win rate at equal length, of `Duel` rows over these prompts.

    matched_length: how many times the characters of the shorter the longer answer may have to be of matched length.
    Raises EvaluationError if the duel has other answers than these, or no verdict."""
    place = {prompt_id: number for number, prompt_id in enumerate(prompt_ids)}
    rows, others = new.by_prompt(), other.by_prompt()
    rates = np.zeros((len(place), 2))  # (N, 2) win rate, and 1 for a judged prompt
    alike = np.zeros((len(place), 2))  # (N, 2) judged pairs of one text, and of two
    sides = np.zeros((len(place), STRATA, 2, 2))  # (N, S, 2, 2) new longer or shorter; wins and pairs
    for prompt_id, preferences in prompt_preferences(duel):
        number = place.get(prompt_id, -1)
        if number < 0 or preferences.shape != (len(rows[number]), len(others[number])):
            raise EvaluationError(
                f"the duel compares {' x '.join(map(str, preferences.shape))} answers to held-out prompt {prompt_id}, and the "
                "samples have others; expected the answers that were judged: delete the duel artifact and run again"
            )
        judged = ~np.isnan(preferences)  # (n, m)
        if judged.any():
            texts = [new.texts[row] for row in rows[number]], [other.texts[row] for row in others[number]]
            apart = judged & np.array([[one != two for two in texts[1]] for one in texts[0]])  # (n, m)
            rates[number] = preferences[judged].mean(), 1
            alike[number] = judged.sum() - apart.sum(), apart.sum()
            sides[number] = _sides(preferences[apart], _log_ratio(*texts)[apart], np.log(matched_length))
    if not alike.any():
        raise EvaluationError(
            f"none of {duel.num_rows} held-out prompts has a pair with a verdict in both orders; expected at least one: "
            "delete the duel artifact and run again when the judge's server answers"
        )
    win_rate = resampled({"win_rate": Ratio(rates[:, 0], rates[:, 1])}, resamples, seed)["win_rate"]
    matched = sides[:, :, :, 1].sum() / alike[:, 1].sum() if alike[:, 1].any() else 0.0
    return DuelMeasures(win_rate, equal_length(sides, alike, resamples, seed), float(matched))


def equal_length(sides: Array, alike: Array, resamples: int, seed: int) -> Resampled | None:
    """Win rate of answers of matched length, as if each policy's were the longer one as often and by as much.

    sides: (N, S, 2, 2) of N prompts, in S strata by how unequal the lengths are, where the new answer is the longer one and
    where the other is: sum of P(new > other), and pairs. alike: (N, 2) pairs of one text and of two, of any length.

    In each stratum the win rates of both sides count half each; strata count by their pairs; one with pairs on one side alone
    says nothing, and if all are so there is no such win rate: None. What length does to a judge has opposite signs on the two
    sides, so it cancels whatever its form, a step included. Pairs of one text are even, and count by their share of all pairs.

    The question is that of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475): what would the preference be if
    both answers were equally long? Matched pairs answer it, as in Hu et al. 2024 (arXiv:2407.01085), instead of a regression
    whose form the judge may not have."""
    prompts = len(sides)
    columns = np.concatenate([sides.reshape(prompts, -1), alike], axis=1)  # (N, S * 2 * 2 + 2)
    value = float(_win_rates(columns.sum(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return None
    found = replicates(lambda drawn: _win_rates(times_drawn(drawn) @ columns), prompts, resamples, seed)  # (R,)
    return Resampled(value, found, int(np.count_nonzero(sides[..., 1].any(axis=(1, 2)))))


def _win_rates(totals: Array) -> Array:
    """(r,) from sums over prompts (r, S * 2 * 2 + 2)."""
    wins, pairs = np.moveaxis(totals[:, :-2].reshape(-1, STRATA, 2, 2), -1, 0)  # (r, S, 2) each
    one_text, two_texts = totals[:, -2], totals[:, -1]  # (r,)
    rates = np.divide(wins, pairs, out=np.zeros_like(wins), where=pairs > 0).mean(axis=2)  # (r, S)
    weights = np.where((pairs > 0).all(axis=2), pairs.sum(axis=2), 0)  # (r, S)
    whole = weights.sum(axis=1)  # (r,)
    apart = np.divide((rates * weights).sum(axis=1), whole, out=np.full(len(whole), np.nan), where=whole > 0)  # (r,)
    return np.asarray((one_text / 2 + two_texts * apart) / (one_text + two_texts))


def _sides(preferences: Array, longer: Array, limit: float) -> Array:
    """(S, 2, 2) of one prompt's pairs of different texts. preferences, longer: (pairs,).

    Pairs of equal length stand on both sides, half each."""
    found = np.zeros((STRATA, 2, 2))
    stratum = np.minimum((np.abs(longer) / limit * STRATA).astype(np.int64), STRATA - 1)  # (pairs,)
    weights = np.where(longer == 0, 0.5, 1.0)  # (pairs,)
    near = np.abs(longer) <= limit
    for side, there in enumerate((near & (longer >= 0), near & (longer <= 0))):
        found[:, side, 0] = sums((preferences * weights)[there], stratum[there], STRATA)
        found[:, side, 1] = sums(weights[there], stratum[there], STRATA)
    return found


def _log_ratio(new: Sequence[str], other: Sequence[str]) -> Array:
    """(n, m) log of the new answer's characters over the other's, each counted one more."""
    mine, theirs = (np.log1p([len(text) for text in texts]) for texts in (new, other))
    return np.asarray(mine[:, None] - theirs[None, :])
