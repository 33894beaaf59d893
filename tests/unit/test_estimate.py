"""Win probabilities and targets against values worked out by hand, and against the released code's own output."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo.errors import EstimateError
from sppo.estimate import preference_matrices, select, targets, win_probabilities
from sppo.recipe import Recipe
from sppo.records import SCHEMAS, Comparison, Response, Target, from_table, to_table

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "uclaml_compute_prob.parquet"

# A = (L - L^T) / 2 of a cyclic game: 0 beats 1, 1 beats 2, 2 beats 0
CYCLE = np.array([[[0.0, 2.0, -0.5], [-2.0, 0.0, 1.0], [0.5, -1.0, 0.0]]])


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


def test_leaving_out_the_self_match_widens_every_target_by_k_over_k_minus_1() -> None:
    with_self = win_probabilities(CYCLE, "pairwise", True)
    without = win_probabilities(CYCLE, "pairwise", False)
    assert without - 0.5 == pytest.approx((with_self - 0.5) * 3 / 2)


def test_both_orders_are_averaged() -> None:
    # L_01 = 3, L_10 = 1: the judge likes whatever is shown first; (3 - 1) / 2 = 1, sigmoid(1) = 0.731059
    logits = np.array([[[0.0, 3.0], [1.0, 0.0]]])
    assert preference_matrices(logits, "pairwise")[0, 0, 1] == pytest.approx(0.731059, abs=1e-6)


def test_preferences_and_their_transpose_add_up_to_one() -> None:
    logits = np.random.default_rng(0).normal(scale=5, size=(50, 5, 5))
    for rule in ("pairwise", "bradley_terry"):
        preferences = preference_matrices(logits, rule)  # (N, K, K)
        assert preferences + preferences.transpose(0, 2, 1) == pytest.approx(np.ones((50, 5, 5)))


@pytest.mark.skipif(not REFERENCE.exists(), reason="the released code's recorded output is not on this machine")
def test_bradley_terry_equals_the_released_compute_prob() -> None:
    rows = pq.read_table(REFERENCE).to_pandas()
    scores = rows[[f"score_{k}" for k in range(5)]].to_numpy()  # (N, K)
    logits = (scores[:, :, None] - scores[:, None, :]) / 2  # (N, K, K): their row means of (L - L^T) are s - mean(s)
    found = win_probabilities(logits, "bradley_terry", True)
    _, roles = select(found, "extremes", False)
    index = np.arange(len(rows))
    chosen, rejected = rows["chosen"].to_numpy(), rows["rejected"].to_numpy()
    assert found[index, chosen] == pytest.approx(rows["p_win"].to_numpy(), abs=1e-6)
    assert found[index, rejected] == pytest.approx(rows["p_lose"].to_numpy(), abs=1e-6)
    untied = np.ptp(scores, axis=1) > 0  # in a tie of all five the released code pairs a response with itself
    assert (roles[index, chosen][untied] == "best").all()
    assert (roles[index, rejected][untied] == "worst").all()


def test_extremes_are_never_the_same_response() -> None:
    selected, roles = select(np.full((1, 4), 0.5), "extremes", False)
    assert roles.tolist() == [["best", "worst", "other", "other"]]
    assert selected.tolist() == [[True, True, False, False]]


def test_ties_are_left_out_when_asked() -> None:
    selected, roles = select(np.array([[0.5, 0.5], [0.4, 0.6]]), "all", True)
    assert selected.tolist() == [[False, False], [True, True]]
    assert roles.tolist() == [["tied", "tied"], ["worst", "best"]]


def _tables(logits: dict[str, list[float]], texts: dict[str, list[str]]) -> tuple[pa.Table, pa.Table]:
    comparisons = [Comparison(name, len(texts[name]), values) for name, values in logits.items()]
    responses = [
        Response(name, k, [1], text, "stop", [-1.0], 0) for name, several in texts.items() for k, text in enumerate(several)
    ]
    return to_table(Comparison, comparisons), to_table(Response, responses)


def test_identical_responses_get_one_half_and_are_not_trained_on(tiny: Recipe) -> None:
    comparisons, responses = _tables(
        {"same": [0.0] * 9, "apart": [0.0, 2.0, -2.0, 0.0]}, {"same": ["a", "a", "a"], "apart": ["b", "c"]}
    )
    rows = list(from_table(Target, targets(tiny, comparisons, responses)))
    assert [row.win_probability for row in rows[:3]] == [0.5, 0.5, 0.5]
    assert [row.role for row in rows] == ["identical"] * 3 + ["best", "worst"]
    assert [row.selected for row in rows] == [False] * 3 + [True, True]
    # (0.5 + sigmoid((2 - -2) / 2)) / 2 = (0.5 + 0.880797) / 2
    assert rows[3].win_probability == pytest.approx(0.690399, abs=1e-6)


def test_a_logit_that_is_not_a_number_is_named(tiny: Recipe) -> None:
    comparisons, responses = _tables({"p17": [0.0, float("nan"), 1.0, 0.0]}, {"p17": ["a", "b"]})
    with pytest.raises(EstimateError, match=r"prompt p17, pair \(0, 1\) is nan; expected a finite number"):
        targets(tiny, comparisons, responses)


def test_comparisons_of_other_responses_are_refused(tiny: Recipe) -> None:
    comparisons, _ = _tables({"p": [0.0, 1.0, 1.0, 0.0]}, {"p": ["a", "b"]})
    _, responses = _tables({}, {"p": ["a", "b", "c"]})
    with pytest.raises(EstimateError, match="prompt p was ranked with 2 responses and has 3"):
        targets(tiny, comparisons, responses)


def test_one_response_cannot_be_compared() -> None:
    with pytest.raises(EstimateError, match="K = 1 responses; expected at least 2"):
        win_probabilities(np.zeros((1, 1, 1)), "pairwise", True)


def test_target_rows_have_the_schema_that_travels(tiny: Recipe) -> None:
    comparisons, responses = _tables({"p": [0.0, 1.0, -1.0, 0.0]}, {"p": ["a", "b"]})
    assert targets(tiny, comparisons, responses).schema == SCHEMAS[Target]
