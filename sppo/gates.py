"""Whether an iteration may be followed by another: tests of what was measured, each with its reason in one sentence.

Every gate tests one claim over resampled prompts, one-sided. That something was gained must be shown: an iteration without any
gain passes with a chance of at most `level`. That a judge was pleased rather than served, or a bound passed, must not be shown:
Holm's correction over all these claims keeps the chance that an iteration is stopped for something that is not so at `level`
too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sppo.checks.measures import JudgeMeasures, Measures
from sppo.checks.resampling import Resampled
from sppo.configuration import Frozen
from sppo.errors import EvaluationError
from sppo.recipe.evaluation import Gates
from sppo.statistics import Interval, holm

FILE = "gates.json"
EVEN = 0.5
"""Win rate of a policy against itself."""

SINCE_BASE = {
    "repetition": "repeated 4-grams",
    "loops": "answers that end in a loop",
    "empty": "answers without a letter or digit",
    "cut": "answers cut at the limit",
    "refusals": "answers that open with a refusal",
}
"""Shares that may rise by so much since the base policy; each is a bound in `Gates` and a number in `sppo.checks`."""


class Decision(Frozen):
    """One gate's."""

    gate: str
    passed: bool
    numbers: dict[str, Interval]
    """What was measured, by name."""
    bound: float | None
    """Of the number that the gate tests; None if it only compares two."""
    p_value: float | None
    """Of the claim; of those that must not be shown after Holm's correction. None where nothing could be tested."""
    reason: str
    """One sentence for a person."""


class Verdict(Frozen):
    """gates.json of iteration t."""

    version: Literal[1] = 1
    iteration: int
    level: float
    decisions: tuple[Decision, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was."""
        return all(decision.passed for decision in self.decisions)

    def reasons(self) -> list[str]:
        """Of the gates that were not passed."""
        return [f"{decision.gate}: {decision.reason}" for decision in self.decisions if not decision.passed]

    def summary(self) -> str:
        """One line for the log."""
        if self.passed:
            return f"iteration {self.iteration} passed {len(self.decisions)} gates"
        failed = self.reasons()
        return f"iteration {self.iteration} failed {len(failed)} of {len(self.decisions)} gates: {'; '.join(failed)}"


@dataclass(frozen=True)
class _Claim:
    """What a gate tests, before Holm's correction."""

    gate: str
    numbers: dict[str, Resampled]
    bound: float | None
    p_value: float | None
    wanted: bool
    """Whether the gate is passed if the claim is shown, or if it is not."""
    shown: str
    """The sentence if the claim is shown."""
    otherwise: str


def decide(measures: Measures, gates: Gates) -> Verdict:
    """The decisions on iteration t: pi_t against pi_(t-1), and its answers against pi_0's.

    Raises EvaluationError without a judge, or for iteration 0, which has nothing before it."""
    if measures.iteration < 1 or not measures.judges:
        raise EvaluationError(
            f"iteration {measures.iteration} was measured under {len(measures.judges)} judges; "
            "expected iteration 1 or later and at least one judge: a gate compares with the policy before"
        )
    claims = list(_claims(measures, gates))
    tested = {claim.gate: claim.p_value for claim in claims if claim.p_value is not None}
    wanted = {claim.gate: tested.pop(claim.gate) for claim in claims if claim.wanted}
    p_values = {**wanted, **holm(tested)}
    return Verdict(
        iteration=measures.iteration,
        level=gates.level,
        decisions=tuple(_decision(claim, p_values.get(claim.gate), gates.level) for claim in claims),
    )


def _decision(claim: _Claim, p_value: float | None, level: float) -> Decision:
    shown = p_value is not None and p_value <= level
    return Decision(
        gate=claim.gate,
        passed=p_value is None or shown == claim.wanted,
        numbers={name: number.interval() for name, number in claim.numbers.items()},
        bound=claim.bound,
        p_value=p_value,
        reason=claim.shown if shown else claim.otherwise,
    )


def _claims(measures: Measures, gates: Gates) -> Iterator[_Claim]:
    main, *others = measures.judges
    yield _gain(measures, main, gates)
    if not others:
        yield _untested(
            "independent_judge", "only the training judge was asked; a second one in evaluation.judges can disagree"
        )
    for judge in others:
        gate = "independent_judge" if len(others) == 1 else f"independent_judge:{judge.judge}"
        yield _divergence(measures, gate, judge.judge, judge.against[-1].win_rate, gates)
    matched = main.against[-1].equal_length
    if matched is None:
        yield _untested("equal_length", "all answers of matched length are longer on the same side")
    else:
        yield _divergence(measures, "equal_length", "at equal length", matched, gates)
    yield _length(measures, gates)
    newest, base = measures.policies[-1], measures.policies[0]
    for name, words in SINCE_BASE.items():
        if name in newest and name in base:
            yield _rise(name, words, newest[name], base[name], getattr(gates, name))


def _gain(measures: Measures, judge: JudgeMeasures, gates: Gates) -> _Claim:
    rate = judge.against[-1].win_rate
    bound = EVEN + gates.least_gain
    said = f"{judge.judge} prefers iteration {measures.iteration} to {_before(measures)} in {_percent(rate)} of comparisons"
    return _Claim(
        gate="gain",
        numbers={"win_rate": rate},
        bound=bound,
        p_value=rate.p_above(bound),
        wanted=True,
        shown=f"{said}, more than {100 * bound:g} %",
        otherwise=f"{said}, which does not show more than {100 * bound:g} %: nothing was gained that {rate.n} prompts can tell",
    )


def _divergence(measures: Measures, gate: str, name: str, other: Resampled, gates: Gates) -> _Claim:
    """The training judge's win rate rises, and more than another one, which does not."""
    judge, bound = measures.judges[0].judge, EVEN + gates.least_gain
    rate = measures.judges[0].against[-1].win_rate
    both = other.p_above(bound) <= gates.level
    # each part must hold, so the largest p is one of the whole
    p_value = 1.0 if both else max(rate.p_above(bound), rate.minus(other).p_above(0.0))
    said = f"against {_before(measures)} {judge} sees {_percent(rate)} won, {name} {_percent(other)}"
    return _Claim(
        gate=gate,
        numbers={"win_rate": rate, "other": other, "difference": rate.minus(other)},
        bound=bound,
        p_value=p_value,
        wanted=False,
        shown=f"{said}: the first rises and the second does not",
        otherwise=f"{said}: {'both rise' if both else 'that the first alone rises is not shown'}",
    )


def _length(measures: Measures, gates: Gates) -> _Claim:
    new, old = measures.policies[-1]["characters"], measures.policies[-2]["characters"]
    if not old.value:
        return _untested("length", f"the answers of {_before(measures)} have no characters to grow from")
    growth = new.growth_from(old)
    said = f"answers have {new.value:.0f} characters, {old.value:.0f} before: {_percent(growth, signed=True)}"
    return _bounded("length", {"growth": growth, "characters": new, "before": old}, growth, gates.length_growth, said)


def _rise(name: str, words: str, new: Resampled, base: Resampled, bound: float) -> _Claim:
    rise = new.minus(base)
    said = f"{words}: {100 * new.value:.1f} %, the base policy's {100 * base.value:.1f} %: {_percent(rise, signed=True)}"
    return _bounded(name, {"rise": rise, "share": new, "base": base}, rise, bound, said)


def _bounded(gate: str, numbers: dict[str, Resampled], tested: Resampled, bound: float, said: str) -> _Claim:
    within = "within" if tested.value <= bound else "past, but no more than chance explains,"
    return _Claim(
        gate=gate,
        numbers=numbers,
        bound=bound,
        p_value=tested.p_above(bound),
        wanted=False,
        shown=f"{said}, past the bound of {100 * bound:+g} %",
        otherwise=f"{said}, {within} the bound of {100 * bound:+g} %",
    )


def _untested(gate: str, reason: str) -> _Claim:
    return _Claim(gate, {}, None, None, wanted=False, shown="", otherwise=f"not tested: {reason}")


def _before(measures: Measures) -> str:
    return "the base policy" if measures.iteration == 1 else f"iteration {measures.iteration - 1}"


def _percent(number: Resampled, signed: bool = False) -> str:
    found = number.interval()
    sign = "+" if signed else ""
    return f"{100 * found.value:{sign}.1f} % [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
