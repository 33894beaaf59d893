"""Raw win rates, as alpaca_eval's leaderboard has them. N judged instructions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppo.alpaca_eval.annotations import Annotation, preferences
from sppo.errors import EvaluationError


@dataclass(frozen=True)
class WinRates:
    """How often the model is preferred over the reference. Rates in percent, of judged rows."""

    win_rate: float
    """Mean preference."""
    standard_error: float
    """Of that mean over instructions; nan of a single one."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    """Judged rows: all of the three above."""
    discrete_win_rate: float
    """Wins and half the draws."""
    avg_length: int
    """Mean characters of the model's answers, judged or not, cut to a whole number as published."""
    unjudged: int
    """Rows without a verdict, which count nowhere else."""


def win_rates(annotations: Sequence[Annotation]) -> WinRates:
    """Raises EvaluationError if no row was judged."""
    all_rows = preferences(annotations)
    judged = all_rows[~np.isnan(all_rows)]  # (N,)
    if not len(judged):
        raise EvaluationError(
            f"none of {len(annotations)} rows was judged; expected at least one preference: "
            "judge the rows again when the judge answers"
        )
    wins, losses = int((judged > 0.5).sum()), int((judged < 0.5).sum())
    draws = len(judged) - wins - losses
    return WinRates(
        win_rate=float(100 * judged.mean()),
        standard_error=float(100 * judged.std(ddof=1) / math.sqrt(len(judged))) if len(judged) > 1 else math.nan,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=len(judged),
        discrete_win_rate=100 * (wins + draws / 2) / len(judged),
        avg_length=mean_length([one.output_2 for one in annotations]),
        unjudged=len(annotations) - len(judged),
    )


def mean_length(texts: Sequence[str]) -> int:
    """Mean characters, cut to a whole number."""
    return sum(len(text) for text in texts) // len(texts)
