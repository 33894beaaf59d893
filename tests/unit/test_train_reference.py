"""log pi_t from the sampler's own log-probs, and the audit that bounds how far they are off."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sppo.errors import RecipeError, TrainError
from sppo.recipe import Recipe, Training, overridden
from sppo.records import Prompt, Response, Target, to_table
from sppo.train.examples import Examples, join_examples
from sppo.train.reference import audit, audited_rows, sampler_reference

NAN = float("nan")


def sampled(logprobs: dict[str, list[list[float]]], max_tokens: int = 100) -> tuple[Examples, pa.Table]:
    """Examples of prompts of 2 tokens, all responses selected, and the table that generation stored."""
    rows = [
        Response(name, k, [7] * max(1, len(values)), "", "stop", values, 0)
        for name, each in logprobs.items()
        for k, values in enumerate(each)
    ]
    examples = join_examples(
        to_table(Prompt, [Prompt(name, [{"role": "user", "content": "x"}], [1, 2]) for name in logprobs]),
        to_table(Response, rows),
        to_table(Target, [Target(row.prompt_id, row.k, 0.5, True, "other") for row in rows]),
        max_tokens,
    )
    return examples, to_table(Response, rows[::-1])


def test_the_reference_is_the_sum_of_the_samplers_log_probs_by_row() -> None:
    examples, stored = sampled({"b": [[-1.0, -0.5], [-2.0]], "a": [[-0.25, -0.25, -0.5]]})
    assert sampler_reference(examples, stored).tolist() == [-1.0, -1.5, -2.0]


def test_a_cut_response_has_the_log_probs_of_what_is_left() -> None:
    examples, stored = sampled({"a": [[-1.0, -2.0, -4.0]]}, max_tokens=4)  # 2 tokens of prompt, 2 of response
    assert sampler_reference(examples, stored).tolist() == [-3.0]


def test_responses_of_other_prompts_may_stand_in_the_table() -> None:
    examples, _ = sampled({"a": [[-1.0]]})
    assert sampler_reference(examples, sampled({"z": [[NAN]], "a": [[-1.0]]})[1]).tolist() == [-1.0]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([], r"prompt 'a', response 0 has 0 log-probs for 2 tokens; .* set training.reference to recompute"),
        ([-1.0], "has 1 log-probs for 2 tokens"),
        ([-1.0, NAN], "log-prob 1 of prompt 'a', response 0 is nan; expected a finite number of at most 0"),
        ([float("-inf"), -1.0], "log-prob 0 of prompt 'a', response 0 is -inf"),
        ([-1.0, 0.5], r"log-prob 1 .* is 0.5"),
    ],
)
def test_responses_without_log_probs_are_refused(stored: list[float], message: str) -> None:
    examples, _ = sampled({"a": [[-1.0, -1.0]]})
    with pytest.raises(TrainError, match=message):
        sampler_reference(examples, to_table(Response, [Response("a", 0, [7, 7], "", "stop", stored, 0)]))


def test_a_table_without_the_column_or_with_nulls_is_refused() -> None:
    examples, stored = sampled({"a": [[-1.0]]})
    with pytest.raises(TrainError, match="the responses have no log-probs"):
        sampler_reference(examples, stored.drop_columns(["logprobs"]))
    nulls = stored.set_column(stored.column_names.index("logprobs"), "logprobs", pa.array([None], pa.list_(pa.float32())))
    with pytest.raises(TrainError, match="has 0 log-probs for 1 tokens"):
        sampler_reference(examples, nulls)


def auditing(tiny: Recipe, responses: int, tolerance: float = 1.0) -> Training:
    return tiny.training.model_copy(
        update={"reference": "sampler", "reference_audit": responses, "reference_tolerance": tolerance}
    )


def many(count: int = 40) -> Examples:
    return sampled({f"prompt {number:02}": [[-1.0], [-2.0]] for number in range(count // 2)})[0]


def test_the_audited_responses_follow_from_seed_and_iteration_and_not_from_other_responses(tiny: Recipe) -> None:
    rows = audited_rows(many(), auditing(tiny, 7), seed=42, iteration=1)
    assert rows == sorted(set(rows))
    assert len(rows) == 7
    assert rows == audited_rows(many(), auditing(tiny, 7), 42, 1)
    assert set(rows) < set(audited_rows(many(), auditing(tiny, 9), 42, 1))
    assert rows != audited_rows(many(), auditing(tiny, 7), 42, 2)
    assert rows != audited_rows(many(), auditing(tiny, 7), 43, 1)
    fewer = audited_rows(many(20), auditing(tiny, 40), 42, 1)
    assert fewer == list(range(20))  # more than there are: all


def test_the_deviation_goes_into_the_metrics(tiny: Recipe) -> None:
    asked: list[Sequence[int]] = []

    def recompute(rows: Sequence[int]) -> Any:
        asked.append(rows)
        return np.array([-1.0 - 0.1 * number for number in range(5)])  # off by 0, .1, .2, .3, .4

    found = audit(many(), np.full(40, -1.0), recompute, auditing(tiny, 5), 42, 1)
    assert asked == [audited_rows(many(), auditing(tiny, 5), 42, 1)]
    # of 0, .1, .2, .3, .4 the 95 % quantile lies .8 of the way from .3 to .4
    expected = {"mean": 0.2, "p95": 0.38, "largest": 0.4}
    assert found == pytest.approx(
        {"reference_audited": 5, **{f"reference_{name}_difference": value for name, value in expected.items()}}
    )


def test_a_deviation_above_the_tolerance_names_the_worst_response(tiny: Recipe) -> None:
    reference = np.full(4, -10.0)
    with pytest.raises(TrainError) as caught:
        audit(many(4), reference, lambda rows: np.array([-10.0, -12.5, -9.5, -10.0]), auditing(tiny, 4, 2.0), 42, 1)
    message = str(caught.value)
    assert "prompt 'prompt 00', response 1 (1 tokens) is -10.000 nats from the sampler and -12.500 recomputed" in message
    assert "differ by 2.500, the most of 4 audited (mean 0.750), and training.reference_tolerance is 2" in message
    assert "set training.reference to recompute" in message


@pytest.mark.parametrize("values", [[-1.0], [-1.0, NAN]])
def test_a_recomputation_that_gives_no_numbers_is_refused(tiny: Recipe, values: list[float]) -> None:
    with pytest.raises(TrainError, match="recomputed log-probs for 2 audited responses"):
        audit(many(2), np.full(2, -1.0), lambda rows: np.array(values), auditing(tiny, 2), 42, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference=cached", "training.reference is 'cached'; expected 'recompute' or 'sampler'"),
        ("reference_audit=0", "training.reference_audit is 0; expected 1 or more"),
        ("reference_tolerance=0", "training.reference_tolerance is 0; expected more than 0"),
        ("reference_tolerance=.nan", "training.reference_tolerance is .*number"),
    ],
)
def test_settings_of_the_reference_out_of_range_are_refused(tiny: Recipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overridden(tiny, (f"training.{override}",))


def test_a_4_bit_base_is_not_what_the_sampler_drew_from(tiny: Recipe) -> None:
    adapter = "training.adapter={kind: %s, rank: 4, alpha: 8}"
    assert overridden(tiny, ("training.reference=sampler", adapter % "lora")).training.reference == "sampler"
    with pytest.raises(RecipeError, match="adapter qlora trains on a 4-bit copy of them"):
        overridden(tiny, ("training.reference=sampler", adapter % "qlora"))
