"""Whether a run may go on: each gate on numbers that a person can judge, and Holm's correction over them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sppo.checks.duels import DuelMeasures
from sppo.checks.measures import JudgeMeasures, Measures
from sppo.checks.resampling import Ratio, Resampled, resampled
from sppo.configuration import validate
from sppo.errors import EvaluationError, GateError, RecipeError
from sppo.gates import Decision, Verdict, decide
from sppo.overruling import find_overruling, pass_gates
from sppo.recipe.evaluation import Gates
from sppo.runs import Entry, IterationIndex
from sppo.store import Identity, Outcome, Step, Store, Workspace

PROMPTS, RESAMPLES = 400, 1000
SHARES = ("repetition", "loops", "empty", "cut", "refusals")


@cache
def number(mean: float, deviation: float = 0.2, seed: int = 0) -> Resampled:
    """A number of 400 prompts with this mean and, over prompts, this deviation: a standard error of a twentieth of it."""
    values = np.random.default_rng(seed).normal(size=PROMPTS)
    values = mean + deviation * (values - values.mean()) / values.std()
    return resampled({"it": Ratio(values, np.ones(PROMPTS))}, RESAMPLES, 7)["it"]


@cache
def policy(characters: float = 1000, **shares: float) -> Mapping[str, Resampled]:
    """Numbers of a policy's answers; a share's deviation is that of a coin, of all prompts the same ones first."""
    found = {"characters": number(characters, 300, seed=9)}
    for name in SHARES:
        share = shares.get(name, 0.0)
        found[name] = resampled(
            {"it": Ratio((np.arange(PROMPTS) < round(share * PROMPTS)).astype(np.float64), np.ones(PROMPTS))}, RESAMPLES, 7
        )["it"]
    return found


def measured(
    rate: float = 0.6,
    independent: float | None = 0.58,
    matched: float | None = 0.59,
    before: Mapping[str, Resampled] | None = None,
    after: Mapping[str, Resampled] | None = None,
    base: Mapping[str, Resampled] | None = None,
) -> Measures:
    """Of iteration 2: win rates against iteration 1."""
    equal = None if matched is None else number(matched, seed=2)
    other = DuelMeasures(number(0.9), number(0.9), 1)
    judges = [JudgeMeasures("judge", False, (other, DuelMeasures(number(rate, seed=1), equal, 0.3)))]
    if independent is not None:
        judges.append(JudgeMeasures("second", True, (other, DuelMeasures(number(independent, seed=3), None, 0.3))))
    policies = (base or policy(), before or policy(), after or policy())
    return Measures(iteration=2, policies=policies, judges=tuple(judges), matrices={}, divergences={})


def decisions(measures: Measures, gates: Gates | None = None) -> dict[str, Decision]:
    return {decision.gate: decision for decision in decide(measures, gates or Gates()).decisions}


def failed(measures: Measures, gates: Gates | None = None) -> list[str]:
    return [name for name, decision in decisions(measures, gates).items() if not decision.passed]


def test_an_honest_iteration_passes_every_gate() -> None:
    verdict = decide(measured(), Gates())
    assert verdict.passed
    names = [decision.gate for decision in verdict.decisions]
    assert names == ["gain", "independent_judge", "equal_length", "length", *SHARES]
    assert verdict.summary() == "iteration 2 passed 9 gates"


def test_a_gain_must_be_shown() -> None:
    # standard error .01: .517 is less than 1.645 of them above .51, .53 is two
    assert failed(measured(rate=0.517)) == ["gain"]
    assert failed(measured(rate=0.53, independent=0.53, matched=0.53)) == []
    reason = decisions(measured(rate=0.505))["gain"].reason
    assert reason.startswith("judge prefers iteration 2 to iteration 1 in 50.5 % [")
    assert "which does not show more than 51 %" in reason
    assert "nothing was gained that 400 prompts can tell" in reason


def test_a_training_judge_that_alone_sees_a_gain_stops_the_run() -> None:
    verdict = decide(measured(rate=0.6, independent=0.5), Gates())
    assert not verdict.passed
    [reason] = verdict.reasons()
    assert reason.startswith("independent_judge: against iteration 1 judge sees 60.0 % [")
    assert reason.endswith("the first rises and the second does not")
    assert "failed 1 of 9 gates" in verdict.summary()


def test_an_independent_judge_that_sees_less_of_a_gain_stops_nothing() -> None:
    # 4 points of 15: a judge of another scale, and 3 standard errors above .51
    assert failed(measured(rate=0.65, independent=0.54)) == []
    assert "both rise" in decisions(measured(rate=0.65, independent=0.54))["independent_judge"].reason


def test_a_difference_that_chance_explains_stops_nothing() -> None:
    # 1.6 points of difference, whose standard error is sqrt(2) points: neither shown to rise nor to differ
    decision = decisions(measured(rate=0.535, independent=0.519))["independent_judge"]
    assert decision.passed
    assert decision.reason.endswith("that the first alone rises is not shown")


def test_a_gain_that_is_length_alone_stops_the_run() -> None:
    assert failed(measured(rate=0.6, matched=0.5)) == ["equal_length"]


def test_without_an_independent_judge_or_matched_answers_the_verdict_says_so() -> None:
    found = decisions(measured(independent=None, matched=None))
    assert found["independent_judge"].passed
    assert found["independent_judge"].reason.startswith("not tested: only the training judge was asked")
    assert found["equal_length"].p_value is None


def test_each_independent_judge_has_a_gate() -> None:
    measures = measured(rate=0.6, independent=0.58)
    third = replace(measures.judges[1], judge="third", against=(DuelMeasures(number(0.5), None, 0.1),) * 2)
    assert failed(replace(measures, judges=(*measures.judges, third))) == ["independent_judge:third"]


def test_answers_that_grow_past_the_bound_stop_the_run() -> None:
    assert failed(measured(before=policy(1000), after=policy(1100))) == []
    assert failed(measured(before=policy(1000), after=policy(1200))) == ["length"]
    decision = decisions(measured(before=policy(1000), after=policy(1200)))["length"]
    assert decision.reason.startswith("answers have 1200 characters, 1000 before: +20.0 %")
    assert decision.numbers["growth"].value == pytest.approx(0.2)
    assert decision.bound == 0.15
    # growth counts from one iteration to the next, whatever the base policy's answers were
    assert failed(measured(base=policy(500), before=policy(1000), after=policy(1100))) == []


def test_answers_cannot_grow_from_nothing() -> None:
    nothing = {**policy(), "characters": Resampled(0.0, np.zeros(RESAMPLES), PROMPTS)}
    decision = decisions(measured(before=nothing))["length"]
    assert decision.passed
    assert decision.reason == "not tested: the answers of iteration 1 have no characters to grow from"


def test_a_bound_passed_by_what_chance_explains_stops_nothing() -> None:
    decision = decisions(measured(base=policy(cut=0.0), after=policy(cut=0.06)))["cut"]
    assert decision.passed
    assert "past, but no more than chance explains, the bound of +5 %" in decision.reason


@pytest.mark.parametrize(
    ("name", "share"), [("repetition", 0.12), ("loops", 0.05), ("empty", 0.05), ("cut", 0.12), ("refusals", 0.06)]
)
def test_a_share_that_rises_past_its_bound_since_the_base_policy_stops_the_run(name: str, share: float) -> None:
    assert failed(measured(after=policy(**{name: share}))) == [name]
    # what the base policy did already is no rise
    assert failed(measured(base=policy(**{name: share}), after=policy(**{name: share}))) == []


def test_holm_counts_the_claims_that_must_not_be_shown() -> None:
    # 8 of them: the independent judge's p of 1 / 1001 becomes 8 / 1001; the gain is a claim of its own
    found = decisions(measured(rate=0.6, independent=0.5))
    assert found["independent_judge"].p_value == pytest.approx(8 / 1001)
    assert found["gain"].p_value == pytest.approx(1 / 1001)


def test_bounds_come_from_the_recipe() -> None:
    gates = Gates(length_growth=0.5, loops=0.2, least_gain=0.2)
    assert failed(measured(before=policy(1000), after=policy(1300, loops=0.1)), gates) == ["gain"]
    with pytest.raises(RecipeError, match=r"'lenght_growth'; did you mean 'length_growth'"):
        validate(Gates, {"lenght_growth": 0.1}, "recipe x", RecipeError)


@pytest.fixture
def checked(store: Store) -> Callable[[Verdict | None], IterationIndex]:
    """The index of an iteration with this verdict."""

    def make(verdict: Verdict | None) -> IterationIndex:
        def run(workspace: Workspace) -> Outcome:
            workspace.add_text("{}", "checks.json")
            if verdict is not None:
                workspace.add_text(verdict.model_dump_json(), "gates.json")
            return Outcome("checked")

        made = store.build(Step(Identity("check", 1, {"of": repr(verdict)}, {}), run))
        entry = Entry(reference=made.reference, digest=made.digest)
        return IterationIndex(run="demo", recipe="tiny", iteration=2, artifacts={"check": entry})

    return make


FAILED = decide(measured(rate=0.6, independent=0.5, before=policy(1000), after=policy(1400)), Gates())


def test_a_run_stops_with_every_reason(store: Store, checked: Callable[[Verdict | None], IterationIndex]) -> None:
    with pytest.raises(GateError, match=r"run demo stops after iteration 2: independent_judge: .*; length: .*--no-gate"):
        pass_gates(store, checked(FAILED))
    assert find_overruling(store, "demo", 2) is None


def test_a_run_goes_on_after_gates_that_were_passed_and_without_any(
    store: Store, checked: Callable[[Verdict | None], IterationIndex]
) -> None:
    pass_gates(store, checked(decide(measured(), Gates())), overruled_by="someone")
    pass_gates(store, checked(None))
    assert find_overruling(store, "demo", 2) is None  # nothing was overruled


def test_who_overrules_gates_is_written_down_and_holds_for_that_verdict(
    store: Store, checked: Callable[[Verdict | None], IterationIndex], caplog: pytest.LogCaptureFixture
) -> None:
    index = checked(FAILED)
    pass_gates(store, index, overruled_by="Ada")
    found = find_overruling(store, "demo", 2)
    assert found is not None
    assert (found.by, found.reasons, found.check) == ("Ada", tuple(FAILED.reasons()), index.artifacts["check"])
    pass_gates(store, index)  # said once, it holds when the run is resumed
    assert "overruled by Ada on" in caplog.text
    longer = decide(measured(before=policy(1000), after=policy(1500)), Gates())
    with pytest.raises(GateError, match="length"):
        pass_gates(store, checked(longer))  # another verdict


def test_an_iteration_without_gain_seldom_passes_and_an_honest_one_is_seldom_stopped() -> None:
    draw = np.random.default_rng(0)

    def one(rates: tuple[float, float, float]) -> Measures:
        found = resampled(
            {str(n): Ratio(rate + 0.2 * draw.normal(size=PROMPTS), np.ones(PROMPTS)) for n, rate in enumerate(rates)}, 500, 1
        )
        judges = (
            JudgeMeasures("judge", False, (DuelMeasures(found["0"], found["1"], 0.3),)),
            JudgeMeasures("second", True, (DuelMeasures(found["2"], None, 0.3),)),
        )
        return Measures(1, (policy(), policy()), judges, {}, {})

    idle = sum(decide(one((0.51, 0.51, 0.51)), Gates()).passed for _ in range(100))
    honest = sum(decide(one((0.56, 0.56, 0.56)), Gates()).passed for _ in range(100))
    assert idle <= 12  # 5 % of 100, and three standard deviations of chance
    assert honest >= 88


def test_there_is_nothing_to_decide_on_before_the_first_iteration() -> None:
    with pytest.raises(EvaluationError, match="iteration 0 was measured under 2 judges"):
        decide(replace(measured(), iteration=0), Gates())
