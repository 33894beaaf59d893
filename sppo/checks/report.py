"""What `checks.json` says: every number with its 95 % interval over prompts, and how many prompts it is of."""

import json
from collections.abc import Mapping
from typing import Literal

from sppo.checks.duels import DuelMeasures
from sppo.checks.measures import JudgeMeasures, Measures
from sppo.checks.resampling import Resampled
from sppo.configuration import Frozen
from sppo.statistics import Interval

FILE = "checks.json"

NUMBERS = {
    "characters": "mean length, characters",
    "characters_median": "median length, characters",
    "characters_p95": "95th percentile, characters",
    "tokens": "mean length, tokens",
    "tokens_median": "median length, tokens",
    "tokens_p95": "95th percentile, tokens",
    "cut": "cut at the limit",
    "empty": "without a letter or digit",
    "refusals": "open with a refusal",
    "repetition": "repeated 4-grams of an answer",
    "loops": "end in a loop",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
}
"""What is measured of a policy's answers, by its name here."""


class DuelChecks(Frozen):
    """pi_t's answers against those of an earlier policy, under one judge."""

    against: int
    """Iteration of the other policy."""
    win_rate: Interval
    equal_length: Interval | None
    """Win rate of answers of matched length; None where one policy has the longer answer in all of them."""
    matched: float
    """Share of pairs of different texts that are of matched length."""


class JudgeChecks(Frozen):
    """One judge's view of pi_t."""

    judge: str
    independent: bool
    against: tuple[DuelChecks, ...]


class DivergenceChecks(Frozen):
    """KL(pi_t || pi_s) in nats, by Monte Carlo."""

    source: int
    """s."""
    log_ratio: Interval
    """An answer: mean of log pi_t(y) - log pi_s(y)."""
    log_ratio_error: float
    """Its standard error."""
    low_variance: Interval | None
    """The same by the estimator that is never negative; None where answers were not drawn at temperature 1 and top-p 1, so that
    `log_ratio` is no KL divergence either."""
    low_variance_error: float | None
    per_token: Interval


class CheckReport(Frozen):
    """checks.json of iteration t."""

    version: Literal[1] = 1
    iteration: int
    policies: tuple[dict[str, Interval], ...]
    """pi_0 .. pi_t, by the names in NUMBERS; a name is missing where there is nothing to count."""
    judges: tuple[JudgeChecks, ...]
    matrices: dict[str, Interval]
    """near_ties and cyclic_triples of the K x K matrices that pi_t was trained on."""
    divergences: tuple[DivergenceChecks, ...]


def check_report(measures: Measures) -> CheckReport:
    """The measures without their replicates."""
    return CheckReport(
        iteration=measures.iteration,
        policies=tuple(_intervals(policy) for policy in measures.policies),
        judges=tuple(_judge(judge) for judge in measures.judges),
        matrices=_intervals(measures.matrices),
        divergences=tuple(
            DivergenceChecks(
                source=source,
                log_ratio=found.log_ratio.interval(),
                log_ratio_error=found.log_ratio.standard_error(),
                low_variance=None if found.low_variance is None else found.low_variance.interval(),
                low_variance_error=None if found.low_variance is None else found.low_variance.standard_error(),
                per_token=found.per_token.interval(),
            )
            for source, found in sorted(measures.divergences.items())
        ),
    )


def to_json(report: Frozen) -> str:
    """As text, keys in order."""
    return json.dumps(report.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _intervals(numbers: Mapping[str, Resampled]) -> dict[str, Interval]:
    return {name: number.interval() for name, number in numbers.items()}


def _judge(judge: JudgeMeasures) -> JudgeChecks:
    against = tuple(_duel(place, duel) for place, duel in enumerate(judge.against))
    return JudgeChecks(judge=judge.judge, independent=judge.independent, against=against)


def _duel(place: int, duel: DuelMeasures) -> DuelChecks:
    return DuelChecks(
        against=place,
        win_rate=duel.win_rate.interval(),
        equal_length=None if duel.equal_length is None else duel.equal_length.interval(),
        matched=duel.matched,
    )
