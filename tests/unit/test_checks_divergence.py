"""KL(pi_t || pi_s) by Monte Carlo, against policies of which it is known."""

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from sppo.checks import Material, check_report, divergence, measure
from sppo.errors import EvaluationError
from sppo.recipe.evaluation import Checks
from sppo.records import Duel, Response, to_table

Array = npt.NDArray[np.float64]


def test_both_estimators_by_hand() -> None:
    # d = .5, -.2 and .1: sums .3 and .1; exp(-d) - 1 + d = .106531, .021403 and .004837
    own = [np.array([-1.0, -2.0]), np.array([-0.5])]
    other = [np.array([-1.5, -1.8]), np.array([-0.6])]
    found = divergence(own, other, np.array([0, 1]), True, 50, 0)
    assert found.log_ratio.value == pytest.approx((0.3 + 0.1) / 2)
    assert found.per_token.value == pytest.approx(0.4 / 3)
    assert found.low_variance is not None
    assert found.low_variance.value == pytest.approx((0.106531 + 0.021403 + 0.004837) / 2, abs=1e-6)


def drawn(prompts: int, seed: int) -> tuple[list[Array], list[Array], npt.NDArray[np.int64]]:
    """Answers of two tokens of a coin each: heads has 0.6 under pi_t and 0.5 under pi_s; after heads 0.8 and 0.7."""
    draw = np.random.default_rng(seed)
    own, other = [], []
    for _ in range(4 * prompts):
        first = draw.random() < 0.6
        chances = (0.8, 0.7) if first else (0.6, 0.5)
        second = draw.random() < chances[0]
        own.append(np.log([0.6 if first else 0.4, chances[0] if second else 1 - chances[0]]))
        other.append(np.log([0.5, chances[1] if second else 1 - chances[1]]))
    return own, other, np.repeat(np.arange(prompts), 4)


def coin(one: float, other: float) -> float:
    return one * math.log(one / other) + (1 - one) * math.log((1 - one) / (1 - other))


TRUE = coin(0.6, 0.5) + 0.6 * coin(0.8, 0.7) + 0.4 * coin(0.6, 0.5)
"""0.0435 nats."""


def test_both_estimators_find_a_known_divergence() -> None:
    found = divergence(*drawn(5000, 0), True, 200, 0)
    assert found.low_variance is not None
    for number in (found.log_ratio, found.low_variance):
        assert number.value == pytest.approx(TRUE, abs=4 * number.standard_error())
    # the second is steadier while the policies are close
    assert found.low_variance.standard_error() < found.log_ratio.standard_error() / 4


def test_the_standard_error_is_the_spread_over_samples() -> None:
    many = [divergence(*drawn(60, seed), True, 200, 0) for seed in range(80)]
    for name in ("log_ratio", "low_variance"):
        values = np.std([getattr(each, name).value for each in many], ddof=1)
        claimed = np.mean([getattr(each, name).standard_error() for each in many])
        assert claimed == pytest.approx(values, rel=0.25)


def test_a_policy_is_at_no_distance_from_itself() -> None:
    own, _, owners = drawn(10, 0)
    found = divergence(own, own, owners, True, 50, 0)
    assert found.low_variance is not None
    assert (found.log_ratio.interval().high, found.low_variance.value, found.per_token.value) == (0, 0, 0)


def test_of_answers_that_are_no_plain_draws_only_the_log_ratio_is_given() -> None:
    assert divergence(*drawn(10, 0), False, 50, 0).low_variance is None


def test_a_missing_log_prob_is_refused() -> None:
    with pytest.raises(EvaluationError, match="answer 0 of 1 has 2 log-probs by its own policy and 1 by the other"):
        divergence([np.array([-1.0, -1.0])], [np.array([-1.0])], np.array([0]), True, 10, 0)
    with pytest.raises(EvaluationError, match="expected a finite one each"):
        divergence([np.array([-1.0])], [np.array([-math.inf])], np.array([0]), True, 10, 0)


def scored(logprob: float, names: tuple[str, ...] = ("p", "q")) -> pa.Table:
    return pa.table({"prompt_id": list(names), "k": [0] * len(names), "logprobs": [[logprob, -1.0]] * len(names)})


def test_scores_of_the_other_policies_become_divergences_of_the_report() -> None:
    answers = to_table(Response, [Response(name, 0, [1, 2], "a b", "stop", [-1.0, -1.0], 0) for name in ("p", "q")])
    duel = to_table(Duel, [Duel(name, 1, 1, [0.0], [0.0]) for name in ("p", "q")])
    material = Material([answers] * 3, {"judge": [duel] * 2}, scores={0: scored(-3.0), 1: scored(-1.5)}, plain=True)
    measures = measure(material, Checks(), 20, 0)
    assert {source: found.log_ratio.value for source, found in measures.divergences.items()} == {0: 2.0, 1: 0.5}
    shown = check_report(measures).divergences
    assert [(each.source, each.log_ratio.value, each.log_ratio_error, each.per_token.value) for each in shown] == [
        (0, 2.0, 0.0, 1.0),
        (1, 0.5, 0.0, 0.25),
    ]
    with pytest.raises(EvaluationError, match=r"1 of 2 answers were not scored by the other policy, the first \('q', 0\)"):
        measure(Material([answers] * 2, {"judge": [duel]}, scores={0: scored(-3.0, ("p",))}), Checks(), 20, 0)
