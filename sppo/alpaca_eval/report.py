"""What the verdicts on a model say, each number with its interval over instructions; and two models on the same instructions.

Rates and their intervals are in percent. A resample draws instructions; the length-controlled rate is fitted anew in each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sppo.alpaca_eval.annotations import Annotation, by_instruction, preferences
from sppo.alpaca_eval.length_control import LengthControlled, design, length_controlled
from sppo.alpaca_eval.refit import win_rate_replicates
from sppo.alpaca_eval.sets import EvaluationSet, GamedBaselines
from sppo.alpaca_eval.win_rates import WinRates, win_rates
from sppo.errors import EvaluationError
from sppo.recipe import EndpointJudge, Judge
from sppo.statistics import RESAMPLES, Difference, Interval, difference, mean_interval, paired_difference, percentile_interval

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One model's numbers."""

    model: str
    reference: str
    judge: str
    raw: WinRates
    """As alpaca_eval's leaderboard has them."""
    win_rate: Interval
    discrete_win_rate: Interval
    length: Interval
    """Mean characters of the model's answers, judged or not."""
    length_controlled: LengthControlled
    length_controlled_name: str
    """What the rate may be called: it depends on which gamed baselines were there."""
    length_controlled_win_rate: Interval
    length_controlled_standard_error: float
    """Percent, of refits: about twice the published kind."""
    evaluation_set_sha256: str
    gamed_baselines_sha256: str | None
    resamples: int
    seed: int
    preferences: dict[str, float] = field(repr=False)
    """By instruction, for the model, in [0, 1]; nan where unjudged. In the set's order."""
    refits: Array = field(repr=False)
    """(R,) length-controlled rates."""


@dataclass(frozen=True)
class Comparison:
    """First minus second model, in percent points, over the same instructions."""

    win_rate: Difference
    """Over instructions that both have a verdict on."""
    length_controlled_win_rate: Difference


def measure(
    annotations: Sequence[Annotation],
    questions: EvaluationSet,
    gamed: GamedBaselines | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """All numbers of one model under one judge. Raises EvaluationError if the rows are of several models or judges."""
    found = by_instruction(annotations)
    rows = [found[instruction] for instruction in questions.instructions if instruction in found]
    fitted = design(annotations, questions, gamed)
    model, reference, judge = (_only(annotations, name) for name in ("generator_2", "generator_1", "annotator"))
    every = preferences(rows)  # (N,)
    judged = every[~np.isnan(every)]
    raw, fit = win_rates(rows), length_controlled(fitted)
    refits = win_rate_replicates(fitted, fit.inverse_penalty, resamples, seed)
    lengths = np.array([len(one.output_2) for one in rows], dtype=np.float64)
    return Measured(
        model,
        reference,
        judge,
        raw,
        win_rate=mean_interval(100 * judged, resamples, seed),
        discrete_win_rate=mean_interval(50 * (1 + np.sign(judged - 0.5)), resamples, seed),
        length=mean_interval(lengths, resamples, seed),
        length_controlled=fit,
        length_controlled_name=_name(gamed),
        length_controlled_win_rate=percentile_interval(fit.win_rate, refits, len(judged)),
        length_controlled_standard_error=float(refits.std(ddof=1)),
        evaluation_set_sha256=questions.sha256,
        gamed_baselines_sha256=None if gamed is None else gamed.sha256,
        resamples=resamples,
        seed=seed,
        preferences={one.instruction: one.preference_for_model for one in rows},
        refits=refits,
    )


def compare(first: Measured, second: Measured) -> Comparison:
    """Whether one is better. Raises EvaluationError unless both were measured alike, on the same instructions."""
    for name in ("judge", "reference", "evaluation_set_sha256", "gamed_baselines_sha256", "resamples", "seed"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise EvaluationError(
                f"{first.model} was measured with {name} {one} and {second.model} with {other}; expected the same: "
                "measure both alike before comparing them"
            )
    if list(first.preferences) != list(second.preferences):
        raise EvaluationError(
            f"{first.model} has {len(first.preferences)} instructions and {second.model} {len(second.preferences)}, not "
            "all the same; expected the same: judge both on the whole set"
        )
    ours = np.array(list(first.preferences.values()))  # (N,)
    theirs = np.array(list(second.preferences.values()))  # (N,)
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    return Comparison(
        paired_difference(100 * ours[both], 100 * theirs[both], first.resamples, first.seed),
        difference(
            first.length_controlled.win_rate - second.length_controlled.win_rate,
            first.refits - second.refits,
            int(both.sum()),
        ),
    )


def as_json(measured: Measured) -> dict[str, Any]:
    """Plain JSON without the rows behind it. A nan, such as the standard error of one row, is null."""
    plain: dict[str, Any] = _without_nan(asdict(measured))
    del plain["preferences"], plain["refits"]
    return plain


def group_name(judge: Judge, questions: EvaluationSet) -> str:
    """What the numbers may be called, the judge always in it: AlpacaEval's name is for its set under a judge that reads and
    chooses as its own does."""
    if isinstance(judge, EndpointJudge) and questions.official:
        return f"AlpacaEval 2, judge {judge.model}"
    name = judge.model if isinstance(judge, EndpointJudge) else judge.kind
    return f"against {questions.generator}, judge {name}"


def _name(gamed: GamedBaselines | None) -> str:
    if gamed is None:
        return "length-only win rate"
    return "length-controlled win rate" if gamed.official else "length-controlled win rate, other gamed baselines"


def _only(annotations: Sequence[Annotation], name: str) -> str:
    found = sorted({getattr(one, name) for one in annotations})
    if len(found) != 1:
        raise EvaluationError(
            f"the annotations have {len(found)} values of {name}: {', '.join(found)[:200]}; expected one: measure them apart"
        )
    return str(found[0])


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
