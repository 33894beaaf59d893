"""Win probabilities and targets against values worked out by hand, and against the released code's own output."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sppo.errors import EstimateError
from sppo.estimate import BLOCK, Rule, comparable_eta, preference_matrices, step, targets, win_probabilities
from sppo.hygiene import Traits, find_traits
from sppo.recipe import Recipe, Selection, overridden
from sppo.records import SCHEMAS, Comparison, Response, Target, from_table, to_table
from sppo.selection import BEST, WORST, select
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "uclaml_compute_prob.parquet"
NAN = float("nan")

# A = (L - L^T) / 2 of a cyclic game: 0 beats 1, 1 beats 2, 2 beats 0
CYCLE = np.array([[[0.0, 2.0, -0.5], [-2.0, 0.0, 1.0], [0.5, -1.0, 0.0]]])

Array = npt.NDArray[np.float64]
RULES: tuple[Rule, ...] = ("pairwise", "bradley_terry", "prob_mean")
rules = st.sampled_from(RULES)


def matrices() -> "st.SearchStrategy[Array]":
    """(1, K, K) logits."""
    return st.integers(2, 6).flatmap(lambda count: arrays(np.float64, (1, count, count), elements=st.floats(-30, 30)))


def test_pairwise_keeps_a_cycle() -> None:
    # row 0: (0.5 + sigmoid(2) + sigmoid(-0.5)) / 3 = (0.5 + 0.880797 + 0.377541) / 3 = 0.586113
    # row 1: (sigmoid(-2) + 0.5 + sigmoid(1)) / 3 = (0.119203 + 0.5 + 0.731059) / 3 = 0.450087
    # row 2: (sigmoid(0.5) + sigmoid(-1) + 0.5) / 3 = (0.622459 + 0.268941 + 0.5) / 3 = 0.463800
    assert win_probabilities(CYCLE, "pairwise", True)[0] == pytest.approx([0.586113, 0.450087, 0.463800], abs=1e-6)


def test_bradley_terry_makes_the_same_cycle_transitive() -> None:
    # s = row means of 2A = (1, -2/3, -1/3); P_01 = sigmoid(5/3) = .841131, P_02 = sigmoid(4/3) = .791391, P_21 = sigmoid(1/3)
    # row 0: (0.5 + 0.841131 + 0.791391) / 3 = 0.710841
    found = win_probabilities(CYCLE, "bradley_terry", True)[0]
    assert found == pytest.approx([0.710841, 0.358767, 0.430392], abs=1e-6)


def test_prob_mean_lets_no_order_outweigh_the_other_by_being_surer() -> None:
    # shown first, y0 wins by 4: sigmoid(4) = .982014; shown second it loses by 1: 1 - sigmoid(1) = .268941; mean .625477
    logits = np.array([[[0.0, 4.0], [1.0, 0.0]]])
    assert preference_matrices(logits, "prob_mean")[0, 0, 1] == pytest.approx(0.625477, abs=1e-6)
    # pairwise: sigmoid((4 - 1) / 2) = .817574
    assert preference_matrices(logits, "pairwise")[0, 0, 1] == pytest.approx(0.817574, abs=1e-6)


def test_two_votes_that_contradict_each_other_are_a_draw_under_prob_mean() -> None:
    logits = np.array([[[0.0, 3.0], [3.0, 0.0]]])  # both orders prefer what is shown first
    assert win_probabilities(logits, "prob_mean", True)[0] == pytest.approx([0.5, 0.5])


def test_both_orders_are_averaged() -> None:
    # L_01 = 3, L_10 = 1: the judge likes whatever is shown first; (3 - 1) / 2 = 1, sigmoid(1) = 0.731059
    logits = np.array([[[0.0, 3.0], [1.0, 0.0]]])
    assert preference_matrices(logits, "pairwise")[0, 0, 1] == pytest.approx(0.731059, abs=1e-6)


def test_a_temperature_divides_the_logits() -> None:
    # A01 = 2 at temperature 2: sigmoid(1) = .731059; A02 = -.5: sigmoid(-.25) = .437823; (.5 + .731059 + .437823) / 3
    assert win_probabilities(CYCLE, "pairwise", True, 2.0)[0, 0] == pytest.approx(0.556294, abs=1e-6)


@given(matrices(), rules, st.floats(0.1, 10))
def test_preferences_and_their_transpose_add_up_to_one(logits: Array, rule: Rule, temperature: float) -> None:
    preferences = preference_matrices(logits, rule, temperature)[0]  # (K, K)
    assert preferences + preferences.T == pytest.approx(np.ones_like(preferences))
    assert np.diag(preferences) == pytest.approx(np.full(len(preferences), 0.5))


@given(matrices(), rules, st.booleans())
def test_a_prompts_win_probabilities_average_one_half(logits: Array, rule: Rule, self_match: bool) -> None:
    found = win_probabilities(logits, rule, self_match)[0]  # (K,)
    assert found.mean() == pytest.approx(0.5)
    assert ((found >= 0) & (found <= 1)).all()


@given(matrices(), rules, st.integers(0, 2**32 - 1))
def test_the_order_in_which_responses_were_drawn_changes_nothing(logits: Array, rule: Rule, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    shuffled = win_probabilities(logits[:, order][:, :, order], rule, True)[0]
    assert shuffled == pytest.approx(win_probabilities(logits, rule, True)[0, order])


@given(matrices(), rules)
def test_leaving_out_the_self_match_widens_every_target_by_k_over_k_minus_1(logits: Array, rule: Rule) -> None:
    count = logits.shape[1]
    with_self, without = (win_probabilities(logits, rule, self_match) for self_match in (True, False))
    assert without - 0.5 == pytest.approx((with_self - 0.5) * count / (count - 1))
    eta = comparable_eta(1000, count, True, count, False)
    assert eta * (without - 0.5) == pytest.approx(1000 * (with_self - 0.5))


def test_the_comparable_eta_undoes_what_k_and_the_self_match_do_to_targets() -> None:
    assert comparable_eta(1000, 5, True, 5, False) == pytest.approx(800)  # 4/5 of a whole
    assert comparable_eta(1000, 5, True, 2, True) == pytest.approx(1600)  # 4/5 over 1/2
    assert comparable_eta(1000, 5, False, 16, False) == pytest.approx(1000)
    # a response that always wins: P - 1/2 is .4 of 5 with the self-match, .25 of 2
    assert 1600 * 0.25 == 1000 * 0.4
    with pytest.raises(EstimateError, match="K = 1 responses"):
        comparable_eta(1000, 5, True, 1, True)


def test_one_response_cannot_be_compared() -> None:
    with pytest.raises(EstimateError, match="K = 1 responses; expected at least 2"):
        win_probabilities(np.zeros((1, 1, 1)), "pairwise", True)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the released code's recorded output is not on this machine")
def test_bradley_terry_equals_the_released_compute_prob() -> None:
    rows = pq.read_table(REFERENCE).to_pandas()
    scores = rows[[f"score_{k}" for k in range(5)]].to_numpy()  # (N, K)
    logits = (scores[:, :, None] - scores[:, None, :]) / 2  # (N, K, K): their row means of (L - L^T) are s - mean(s)
    found = win_probabilities(logits, "bradley_terry", True)
    apart = Traits(*(np.zeros(found.shape, bool),) * 3, np.broadcast_to(np.eye(5, dtype=bool), logits.shape))
    _, roles = select(found, apart, Selection(responses="extremes", drop_ties=False))
    index = np.arange(len(rows))
    chosen, rejected = rows["chosen"].to_numpy(), rows["rejected"].to_numpy()
    assert found[index, chosen] == pytest.approx(rows["p_win"].to_numpy(), abs=1e-6)
    assert found[index, rejected] == pytest.approx(rows["p_lose"].to_numpy(), abs=1e-6)
    pairs = preference_matrices(logits, "bradley_terry")[index, chosen, rejected]
    assert pairs == pytest.approx(rows["p_chosen_beats_rejected"].to_numpy(), abs=1e-6)
    untied = np.ptp(scores, axis=1) > 0  # in a tie of all five the released code pairs a response with itself
    assert (roles[index, chosen][untied] == BEST).all()
    assert (roles[index, rejected][untied] == WORST).all()


def tables(logits: dict[str, list[float]], texts: dict[str, list[str]]) -> tuple[pa.Table, pa.Table]:
    """Comparisons and responses."""
    comparisons = [Comparison(name, len(texts[name]), values) for name, values in logits.items()]
    responses = [
        Response(name, k, [1], text, "stop", [-1.0], 0) for name, several in texts.items() for k, text in enumerate(several)
    ]
    return to_table(Comparison, comparisons), to_table(Response, responses)


def rows_of(recipe: Recipe, comparisons: pa.Table, responses: pa.Table) -> list[Target]:
    traits = find_traits(responses, comparisons, recipe.selection.near_identical)
    return list(from_table(Target, targets(recipe, comparisons, traits)))


def test_identical_responses_get_one_half_and_are_not_trained_on(tiny: Recipe) -> None:
    comparisons, responses = tables(
        {"same": [0.0] * 9, "apart": [0.0, 2.0, -2.0, 0.0]}, {"same": ["a", "a", "a"], "apart": ["b", "c"]}
    )
    rows = rows_of(tiny, comparisons, responses)
    assert [row.win_probability for row in rows[:3]] == [0.5, 0.5, 0.5]
    assert [row.role for row in rows] == ["identical"] * 3 + ["best", "worst"]
    assert [row.selected for row in rows] == [False] * 3 + [True, True]
    # (0.5 + sigmoid((2 - -2) / 2)) / 2 = (0.5 + 0.880797) / 2
    assert rows[3].win_probability == pytest.approx(0.690399, abs=1e-6)


def test_prompts_may_have_different_numbers_of_responses_and_keep_their_order(tiny: Recipe) -> None:
    cycle = CYCLE.flatten().tolist()
    comparisons, responses = tables(
        {"two": [0.0, 1.0, -1.0, 0.0], "three": cycle, "pair": [0.0, -4.0, 4.0, 0.0]},
        {"pair": ["g", "h"], "three": ["c", "d", "e"], "two": ["a", "b"]},
    )
    rows = rows_of(tiny, comparisons, responses)
    assert [(row.prompt_id, row.k) for row in rows] == [
        ("two", 0), ("two", 1), ("three", 0), ("three", 1), ("three", 2), ("pair", 0), ("pair", 1),
    ]  # fmt: skip
    # two: (0.5 + sigmoid(1)) / 2 = .615529; three: as worked out above; pair: (0.5 + sigmoid(-4)) / 2 = .258993
    expected = [0.615529, 0.384471, 0.586113, 0.450087, 0.463800, 0.258993, 0.741007]
    assert [row.win_probability for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row.role for row in rows] == ["best", "worst", "best", "worst", "other", "worst", "best"]
    # against the worst: sigmoid(1), itself; sigmoid(2), itself, 1 - sigmoid(1); itself, sigmoid(4)
    beats_worst = [0.731059, 0.5, 0.880797, 0.5, 0.268941, 0.5, 0.982014]
    assert [row.beats_worst for row in rows] == pytest.approx(beats_worst, abs=1e-6)


def test_many_prompts_are_estimated_as_each_is_alone(tiny: Recipe) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(BLOCK + 5, 2, 2)).astype(np.float32)
    names = [f"{number:05d}" for number in range(len(logits))]
    comparisons, responses = tables(
        {name: square.ravel().tolist() for name, square in zip(names, logits, strict=True)},
        {name: ["a", "b"] for name in names},
    )
    found = [row.win_probability for row in rows_of(tiny, comparisons, responses)]
    assert found == pytest.approx(win_probabilities(logits.astype(np.float64), "pairwise", True).ravel())


def test_the_recipes_rule_temperature_and_self_match_are_used(tiny: Recipe) -> None:
    comparisons, responses = tables({"p": [0.0, 4.0, 1.0, 0.0]}, {"p": ["a", "b"]})
    recipe = overridden(tiny, ("estimator={rule: prob_mean, temperature: 0.5, self_match: false}",))
    # logits 8 and 2: (sigmoid(8) + 1 - sigmoid(2)) / 2 = (.999665 + .119203) / 2
    assert rows_of(recipe, comparisons, responses)[0].win_probability == pytest.approx(0.559434, abs=1e-6)


def test_a_prompt_with_a_pair_that_no_judge_settled_has_no_targets(tiny: Recipe) -> None:
    comparisons, responses = tables(
        {"open": [0.0, NAN, 1.0, 0.0], "settled": [0.0, 1.0, -1.0, 0.0]}, {"open": ["a", "b"], "settled": ["c", "d"]}
    )
    rows = rows_of(tiny, comparisons, responses)
    assert [(row.prompt_id, row.k, row.role) for row in rows] == [("settled", 0, "best"), ("settled", 1, "worst")]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
def test_an_infinite_logit_is_named(tiny: Recipe, bad: float) -> None:
    comparisons, responses = tables(
        {"fine": [0.0, 1.0, 1.0, 0.0], "p17": [0.0, 1.0, bad, 0.0]}, {"fine": ["a", "b"], "p17": ["a", "b"]}
    )
    with pytest.raises(EstimateError, match=rf"prompt p17, pair \(1, 0\) is {bad}; expected a finite number"):
        rows_of(tiny, comparisons, responses)


def test_comparisons_of_other_responses_are_refused(tiny: Recipe) -> None:
    comparisons, _ = tables({"p": [0.0, 1.0, 1.0, 0.0]}, {"p": ["a", "b"]})
    _, responses = tables({}, {"p": ["a", "b", "c"]})
    with pytest.raises(EstimateError, match="prompt p was ranked with 2 responses and has 3"):
        rows_of(tiny, comparisons, responses)


def test_logits_that_do_not_fill_the_matrices_are_refused(tiny: Recipe) -> None:
    comparisons, responses = tables({"p": [0.0, 1.0, 1.0]}, {"p": ["a", "b"]})
    with pytest.raises(EstimateError, match="3 logits for 1 prompts; expected K x K each, 4: rank again"):
        rows_of(tiny, comparisons, responses)


def test_target_rows_have_the_schema_that_travels(tiny: Recipe) -> None:
    comparisons, responses = tables({"p": [0.0, 1.0, -1.0, 0.0]}, {"p": ["a", "b"]})
    assert targets(tiny, comparisons, find_traits(responses, comparisons, 0.95)).schema == SCHEMAS[Target]


def commit(store: Store, stage: str, table: pa.Table) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(table, "chunk-00000.parquet")
        return Outcome(stage)

    return store.build(Step(Identity(stage, 1, {}, {}), run))


def test_the_stage_counts_what_it_leaves_out_and_why(tiny: Recipe, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    wins = [0.0, 3.0, -3.0, 0.0]
    texts = {
        "apart": ["a fox", "an owl"],
        "same": ["a", "a"],
        "equal": ["b", "c"],
        "open": ["d", "e"],
        "cut": ["f", "g"],
        "refused": ["I'm sorry, but no.", "..."],
    }
    logits = {"apart": wins, "same": [0.0] * 4, "equal": [0.0] * 4, "open": [0.0, NAN, 1.0, 0.0], "cut": wins, "refused": wins}
    comparisons, responses = tables(logits, texts)
    reasons = ["length" if row == "f" else "stop" for row in responses["text"].to_pylist()]
    place = responses.schema.get_field_index("finish_reason")
    responses = responses.set_column(place, responses.schema.field(place), pa.array(reasons))
    with caplog.at_level("INFO"):
        made = store.build(step(tiny, commit(store, "rank", comparisons), commit(store, "generate", responses)))

    assert dict(made.manifest.counts) == {
        "prompts": 6,
        "responses": 12,
        "responses_selected": 5,  # both of `apart` and of `refused`, and the loser of `cut`
        "prompts_selected": 3,
        "prompts_one_sided": 1,
        "prompts_tied": 1,
        "prompts_identical": 1,
        "prompts_unjudged": 1,
        "responses_cut": 1,
        "responses_empty": 1,
        "responses_refusal": 1,
        "cut_left_out": 1,  # it won
        "empty_left_out": 0,  # it lost, and may be lowered
        "refusals_left_out": 0,
        "near_identical_left_out": 0,
    }
    # P - 1/2 = (sigmoid(3) - 1/2) / 2 = .226287 in size for all five
    assert made.manifest.metrics["rms_centred_win_probability"] == pytest.approx(0.226287, abs=1e-6)
    said = (
        "6 prompts, 12 responses, 5 selected; prompts left out: 1 tied, 1 identical, 1 unjudged; "
        "responses: 1 cut (1 left out), 1 empty (0 left out), 1 refusals (0 left out)"
    )
    assert said in caplog.text


def test_an_iteration_of_which_nothing_was_settled_has_no_targets_and_says_so(tiny: Recipe, store: Store) -> None:
    comparisons, responses = tables({"open": [0.0, NAN, NAN, 0.0]}, {"open": ["a", "b"]})
    made = store.build(step(tiny, commit(store, "rank", comparisons), commit(store, "generate", responses)))
    assert len(made.table("targets.parquet")) == 0
    assert {name: made.manifest.counts[name] for name in ("prompts", "responses", "prompts_selected", "prompts_unjudged")} == {
        "prompts": 1,
        "responses": 2,
        "prompts_selected": 0,
        "prompts_unjudged": 1,
    }
