"""The length-controlled rate: its features by hand, its fit to the leaderboard's, and what refits say of it."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo.alpaca_eval.annotations import Annotation
from sppo.alpaca_eval.length_control import CANDIDATES, Design, design, in_deviations, length_controlled
from sppo.alpaca_eval.refit import exact_fit, win_rate_replicates
from sppo.alpaca_eval.report import as_json, compare, group_name, measure
from sppo.alpaca_eval.sets import EvaluationSet, GamedBaselines, Question
from sppo.errors import EvaluationError
from sppo.recipe import Endpoint, EndpointJudge, WorldRuleJudge
from sppo.recipe.alpaca_eval import EVALUATION_SET_SHA256, GAMED_BASELINES_SHA256
from sppo.statistics import draws

Array = npt.NDArray[np.float64]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ANNOTATIONS = SHARED / "alpaca_eval_2_annotations.parquet"
GAMED = SHARED / "alpaca_eval_2_gamed_baselines_reconstructed.parquet"
LEADERBOARD = SHARED / "alpaca_eval_2_leaderboard.csv"
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS.name} is not there")
MODELS = ("FuseChat-Gemma-2-9B-Instruct", "claude-2.1", "gpt-3.5-turbo-1106")
NONE, NOWHERE = np.zeros(0), np.zeros(0, dtype=np.int64)


def row(instruction: str, preference: float | None, reference: int, model: int, name: str = "model") -> Annotation:
    """A verdict on texts of these lengths."""
    return Annotation(instruction, "r" * reference, "reference", "m" * model, name, "judge", preference)


def set_of(*instructions: str, sha256: str = "0" * 64) -> EvaluationSet:
    return EvaluationSet(tuple(Question(instruction, "r", "") for instruction in instructions), "reference", sha256)


def gamed_of(**columns: list[float]) -> GamedBaselines:
    return GamedBaselines(
        *(np.array(columns[name], dtype=np.float64) for name in ("preferences", "lengths", "difficulties")),
        positions=np.array(columns["positions"], dtype=np.int64),
        sha256="1" * 64,
    )


@pytest.fixture(scope="module")
def real_gamed() -> GamedBaselines:
    table = pq.read_table(GAMED)
    columns = [table[name].to_numpy().astype(np.float64) for name in ("preference", "std_delta_len", "instruction_difficulty")]
    return GamedBaselines(*columns, positions=table["index"].to_numpy(), sha256="2" * 64)


REAL_SET = set_of(*(f"instruction {number}" for number in range(805)))


def real_annotations(model: str) -> list[Annotation]:
    return [
        row(f"instruction {one['index']}", one["preference"], one["length_baseline"], one["length_model"], model)
        for one in pq.read_table(ANNOTATIONS).to_pylist()
        if one["model"] == model
    ]


def published(model: str) -> float:
    header, *lines = LEADERBOARD.read_text().splitlines()
    column = header.split(",").index("length_controlled_winrate")
    return next(float(line.split(",")[column]) for line in lines if line.startswith(f"{model},"))


# --- features


def test_a_row_is_a_length_difference_a_difficulty_and_the_model() -> None:
    # reference - model: 10, -10, 0 characters; sd sqrt((100 + 100 + 0) / 2) = 10
    rows = [row("c", 1.5, 20, 20), row("a", 1.9, 30, 20), row("b", None, 10, 20)]
    gamed = gamed_of(
        preferences=[0.25, math.nan, 0.75], lengths=[0.5, 0.1, 2.0], difficulties=[3.0, 4.0, 7.0], positions=[2, 0, 1]
    )
    found = design(rows, set_of("c", "b", "a"), gamed)
    # in the set's order c, b, a; b was not judged and is not fitted, but its length counts in the sd
    features, wanted, weights = found.rows
    np.testing.assert_allclose(
        features,
        [
            [math.tanh(0.5), 3.0, 0.0],  # the gamed rows that have a verdict
            [math.tanh(2.0), 7.0, 0.0],
            [0.0, 4.0, 1.0],  # c
            [math.tanh(1.0), 3.0, 1.0],  # a
        ],
    )
    assert wanted.tolist() == [0.25, 0.75, 0.5, pytest.approx(0.9)]
    assert weights.tolist() == [0.1, 0.1, 1.0, 1.0]
    # gamed rows stand on the instructions at 2 and 1 of the set, which are rows 2 and 1
    assert (found.gamed_places.tolist(), found.kind) == ([2, 1], "length_controlled_v1")


def test_lengths_that_do_not_vary_explain_nothing() -> None:
    assert in_deviations(np.array([5.0, 5.0])).tolist() == [0, 0]
    rows = [row(str(n), 1.2 + 0.1 * (n % 3), 10, 5) for n in range(60)]  # preferences .2 .3 .4
    found = length_controlled(design(rows, set_of(*map(str, range(60))), None))
    assert (found.length, found.win_rate) == (0.0, pytest.approx(30, abs=0.01))


@pytest.mark.parametrize(("preference", "rate"), [(1.0, 0.0), (2.0, 100.0)])
def test_a_model_that_loses_or_wins_everywhere_is_no_draw(preference: float, rate: float) -> None:
    rows = [row(str(n), preference, 10 + n, 15) for n in range(30)]
    fitted = design(rows, set_of(*map(str, range(30))), None)
    found = length_controlled(fitted)
    assert found.win_rate == pytest.approx(rate, abs=0.01)
    assert win_rate_replicates(fitted, found.inverse_penalty, 20, seed=0).tolist() == pytest.approx([rate] * 20, abs=0.01)


def test_only_instructions_of_the_set_can_be_controlled() -> None:
    with pytest.raises(
        EvaluationError, match=r"instruction 'x' is not in the evaluation set of 2; expected its text to the lett"
    ):
        design([row("x", 1.0, 1, 1)], set_of("a", "b"), None)
    with pytest.raises(EvaluationError, match="1 of 2 rows were judged; expected at least 2"):
        design([row("a", 1.0, 1, 1), row("b", None, 1, 1)], set_of("a", "b"), None)
    lone = gamed_of(preferences=[0.5], lengths=[0.0], difficulties=[1.0], positions=[0])
    with pytest.raises(EvaluationError, match=r"no difficulty for instruction 1 of the set, and for 1 in all"):
        design([row("a", 1.0, 1, 1), row("b", 2.0, 1, 1)], set_of("a", "b"), lone)
    with pytest.raises(EvaluationError, match="3 rows cannot be held out in 5 parts"):
        length_controlled(design([row(name, 1.2, 1, 1) for name in "abc"], set_of(*"abc"), None))


# --- the fit


@needs_annotations
@pytest.mark.parametrize("model", MODELS)
def test_the_rate_is_the_leaderboards_within_what_was_reconstructed(model: str, real_gamed: GamedBaselines) -> None:
    found = length_controlled(design(real_annotations(model), REAL_SET, real_gamed))
    assert found.kind == "length_controlled_v1"
    assert found.win_rate == pytest.approx(published(model), abs=0.2)


@needs_annotations
def test_the_order_of_annotations_changes_nothing(real_gamed: GamedBaselines) -> None:
    rows = real_annotations("claude-2.1")
    found = [length_controlled(design(order, REAL_SET, real_gamed)) for order in (rows, rows[::-1])]
    assert found[0] == found[1]


def test_a_judge_that_likes_length_alone_is_seen_through() -> None:
    # the longer answer wins with P = sigmoid(2 tanh(d / sd)), so at equal length the model wins half the time
    random = np.random.default_rng(0)
    differences = random.normal(200, 300, size=400).round()  # model - reference
    chance = 1 / (1 + np.exp(-2 * np.tanh(differences / differences.std(ddof=1))))
    rows = [row(str(n), 1 + chance[n], 2000, 2000 + int(differences[n])) for n in range(400)]
    found = length_controlled(design(rows, set_of(*map(str, range(400))), None))
    assert 100 * chance.mean() > 60
    assert (found.kind, found.difficulty) == ("length_controlled_minimal", 0.0)
    assert found.win_rate == pytest.approx(50, abs=0.1)
    assert found.length == pytest.approx(-2, abs=0.02)


def test_the_published_standard_error_is_the_spread_of_difficulty() -> None:
    rows = [row(str(n), 1.1 + 0.008 * n, 100 + n % 7, 100 + n % 5) for n in range(100)]
    gamed = gamed_of(
        preferences=[0.5] * 100, lengths=[0.0] * 100, difficulties=[n / 50 - 1 for n in range(100)], positions=list(range(100))
    )
    fitted = design(rows, set_of(*map(str, range(100))), gamed)
    found = length_controlled(fitted)
    predicted = 1 / (1 + np.exp(-(found.difficulty * fitted.difficulties + found.model)))
    assert found.win_rate == pytest.approx(100 * predicted.mean())
    assert found.published_standard_error == pytest.approx(100 * predicted.std(ddof=1) / 10)
    alone = length_controlled(design(rows, set_of(*map(str, range(100))), None))
    assert alone.published_standard_error == pytest.approx(0, abs=1e-9), "without difficulty it would say that all is known"


# --- refits


def library_fit(fitted: Design, inverse_penalty: float) -> Array:
    """scikit-learn's, with a tolerance that leaves no room."""
    from sklearn.linear_model import LogisticRegression

    features, wanted, weights = fitted.rows
    model = LogisticRegression(
        C=inverse_penalty, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=100_000, random_state=0
    )
    model.fit(
        np.tile(features, (2, 1)), np.repeat([1, 0], len(wanted)), np.concatenate([wanted * weights, (1 - wanted) * weights])
    )
    found: Array = model.coef_[0]
    return found


@needs_annotations
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("inverse_penalty", [CANDIDATES[2], CANDIDATES[5], CANDIDATES[9]])
def test_the_newton_fit_is_the_librarys_at_the_optimum(model: str, inverse_penalty: float, real_gamed: GamedBaselines) -> None:
    fitted = design(real_annotations(model), REAL_SET, real_gamed)
    np.testing.assert_allclose(exact_fit(fitted, inverse_penalty), library_fit(fitted, inverse_penalty), atol=1e-6)


@needs_annotations
def test_a_refit_is_the_librarys_fit_of_the_rows_that_were_drawn(real_gamed: GamedBaselines) -> None:
    fitted = design(real_annotations("claude-2.1"), REAL_SET, real_gamed)
    found = win_rate_replicates(fitted, 2.78, 3, seed=4)
    (drawn,) = draws(805, 3, seed=4)
    for positions, rate in zip(drawn, found.tolist(), strict=True):
        gamed = np.concatenate([np.flatnonzero(fitted.gamed_places == position) for position in positions])
        again = Design(
            fitted.length_differences[positions],
            fitted.difficulties[positions],
            fitted.preferences[positions],
            fitted.gamed_lengths[gamed],
            fitted.gamed_difficulties[gamed],
            fitted.gamed_preferences[gamed],
            NOWHERE,
        )
        _, difficulty, model = library_fit(again, 2.78)
        assert rate == pytest.approx(100 * np.mean(1 / (1 + np.exp(-(difficulty * again.difficulties + model)))), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(5, 60),
    sharpness=st.sampled_from([0.1, 1.0, 30.0]),
    inverse_penalty=st.sampled_from(CANDIDATES.tolist()),
    controlled=st.booleans(),
)
def test_no_weight_near_the_fit_is_better(
    seed: int, rows: int, sharpness: float, inverse_penalty: float, controlled: bool
) -> None:
    random = np.random.default_rng(seed)
    gamed = 2 * rows if controlled else 0
    fitted = Design(
        random.normal(size=rows) * 500,
        random.normal(size=rows) if controlled else np.zeros(rows),
        1 / (1 + np.exp(-sharpness * random.normal(size=rows))),
        random.normal(size=gamed),
        random.normal(size=gamed),
        random.uniform(size=gamed),
        np.tile(np.arange(rows), 2)[:gamed],
    )
    features, wanted, weights = fitted.rows

    def objective(found: Array) -> float:
        logits = features @ found
        loss = np.logaddexp(0, logits) - wanted * logits
        return float(np.abs(found).sum() + inverse_penalty * (weights * loss).sum())

    found = exact_fit(fitted, inverse_penalty)
    least = objective(found)
    for place in range(3):
        for step in (1e-3, -1e-3):
            if controlled or place != 1:
                assert objective(found + step * np.eye(3)[place]) >= least - 1e-9 * abs(least)
    if not controlled:
        assert found[1] == 0.0


@needs_annotations
def test_an_interval_of_refits_is_twice_as_wide_as_the_published_one(real_gamed: GamedBaselines) -> None:
    fitted = design(real_annotations("FuseChat-Gemma-2-9B-Instruct"), REAL_SET, real_gamed)
    fit = length_controlled(fitted)
    found = win_rate_replicates(fitted, fit.inverse_penalty, 1000, seed=0)
    assert fit.published_standard_error == pytest.approx(0.593, abs=0.001)
    assert found.std(ddof=1) == pytest.approx(1.40, abs=0.08)
    assert abs(found.mean() - fit.win_rate) < 0.2


def test_too_few_verdicts_to_draw_from_are_an_error() -> None:
    rows = [row(str(n), 1.5 if n < 5 else None, 10 + n, 10) for n in range(60)]
    fitted = design(rows, set_of(*map(str, range(60))), None)
    with pytest.raises(EvaluationError, match="5 of 60 rows were judged, and a resample has none of them"):
        win_rate_replicates(fitted, 1.0, 2000, seed=0)


# --- the report


@needs_annotations
def test_every_number_has_its_interval_and_n(real_gamed: GamedBaselines) -> None:
    rows = real_annotations("claude-2.1")
    rows[3] = rows[3].with_verdict(1.5, {})
    rows = [row(one.instruction, None, 5, 5, "claude-2.1") if n == 4 else one for n, one in enumerate(rows)]
    found = measure(rows, REAL_SET, real_gamed, resamples=400, seed=1)
    assert (found.raw.unjudged, found.raw.n_total) == (1, 804)
    for interval in (found.win_rate, found.discrete_win_rate, found.length_controlled_win_rate):
        assert interval.low < interval.value < interval.high
        assert interval.n == 804
    assert (found.win_rate.value, found.discrete_win_rate.value) == pytest.approx(
        (found.raw.win_rate, found.raw.discrete_win_rate)
    )
    assert (int(found.length.value), found.length.n) == (found.raw.avg_length, 805)
    assert found.win_rate.high - found.win_rate.low == pytest.approx(2 * 1.96 * found.raw.standard_error, rel=0.2)
    plain = as_json(found)
    assert plain["length_controlled_name"] == "length-controlled win rate, other gamed baselines"
    assert plain["length_controlled_win_rate"]["n"] == 804
    assert plain["raw"]["unjudged"] == 1
    assert "refits" not in plain


@needs_annotations
def test_a_difference_of_two_models_is_drawn_on_the_same_instructions(real_gamed: GamedBaselines) -> None:
    first, second = (measure(real_annotations(model), REAL_SET, real_gamed, 400, 1) for model in MODELS[1:])
    found = compare(first, second)
    assert found.win_rate.interval.value == pytest.approx(first.raw.win_rate - second.raw.win_rate)
    controlled = found.length_controlled_win_rate.interval
    assert controlled.value == pytest.approx(first.length_controlled.win_rate - second.length_controlled.win_rate)
    apart = math.hypot(first.length_controlled_standard_error, second.length_controlled_standard_error)
    # instructions that are hard for the one are hard for the other: 2.05 paired, 2.50 if they had nothing in common
    assert (first.refits - second.refits).std() < 0.9 * apart
    assert found.win_rate.p_value < 0.01
    other = measure(real_annotations(MODELS[0]), REAL_SET, None, 400, 1)
    with pytest.raises(EvaluationError, match="gamed_baselines_sha256"):
        compare(first, other)
    with pytest.raises(EvaluationError, match=r"has 805 instructions and claude-2\.1 804, not all the same"):
        compare(second, measure(real_annotations("claude-2.1")[1:], REAL_SET, real_gamed, 400, 1))


def test_the_rate_is_named_by_what_it_was_fitted_with() -> None:
    rows = [row(str(n), 1.1 + 0.03 * n, 10 + n % 5, 11) for n in range(25)]
    questions = set_of(*map(str, range(25)))
    plain = gamed_of(preferences=[0.5] * 25, lengths=[0.1] * 25, difficulties=[n / 9 for n in range(25)], positions=range(25))
    official = GamedBaselines(
        plain.preferences, plain.length_differences, plain.difficulties, plain.positions, GAMED_BASELINES_SHA256
    )
    names = [
        (found.length_controlled_name, found.length_controlled.kind)
        for found in (measure(rows, questions, gamed, 50) for gamed in (None, plain, official))
    ]
    assert names == [
        ("length-only win rate", "length_controlled_minimal"),
        ("length-controlled win rate, other gamed baselines", "length_controlled_v1"),
        ("length-controlled win rate", "length_controlled_v1"),
    ]


def test_the_judge_is_in_the_name_and_a_preference_model_is_never_called_alpaca_evals() -> None:
    served = EndpointJudge(kind="endpoint", source=Endpoint(url="http://localhost/v1"), model="gpt-4-1106-preview")
    official, own = set_of("a", sha256=EVALUATION_SET_SHA256), set_of("a")
    assert group_name(served, official) == "AlpacaEval 2, judge gpt-4-1106-preview"
    assert group_name(served, own) == "against reference, judge gpt-4-1106-preview"
    assert group_name(WorldRuleJudge(kind="world-rule"), official) == "against reference, judge world-rule"


def test_rows_of_two_models_are_measured_apart() -> None:
    rows = [row(str(n), 1.5, n, 3, name="one" if n else "other") for n in range(6)]
    with pytest.raises(EvaluationError, match="2 values of generator_2: one, other; expected one"):
        measure(rows, set_of(*map(str, range(6))), None, 10)
