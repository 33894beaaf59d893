"""Labels from examples: roles, what a loss does not read, and the gates of near-identical responses."""

import numpy as np
import pyarrow as pa
import pytest

from sppo.errors import TrainError
from sppo.recipe import Recipe, overridden
from sppo.train.examples import Examples, TrainingPrompt, TrainingResponse
from sppo.train.labels import labels_of, read_by_loss, response_gates


def examples(*prompts: list[tuple[str, float]]) -> Examples:
    """Of prompts a, b, ... whose responses have these roles and win probabilities."""
    made: list[TrainingPrompt] = []
    row = 0
    for name, responses in zip("abcdef", prompts, strict=False):
        ids = np.array([5], np.int32)
        rows = tuple(TrainingResponse(row + k, k, ids, win, role) for k, (role, win) in enumerate(responses))
        row += len(rows)
        made.append(TrainingPrompt(name, ids, rows))
    return Examples(made)


def texts(**by_prompt: list[str]) -> pa.Table:
    rows = [{"prompt_id": name, "k": k, "text": text} for name, said in by_prompt.items() for k, text in enumerate(said)]
    return pa.Table.from_pylist(rows[::-1])  # in another order


def test_labels_stand_in_the_order_of_the_responses() -> None:
    found = labels_of(
        examples([("worst", 0.2), ("best", 0.9)], [("other", 0.6)]).prompts[::-1], gates=np.array([0.1, 0.2, 0.3])
    )
    assert found.prompt.tolist() == [0, 1, 1]
    assert found.win_probability.tolist() == [0.6, 0.2, 0.9]
    assert found.is_best.tolist() == [False, False, True]
    assert found.is_worst.tolist() == [False, True, False]
    assert found.gate.tolist() == [0.3, 0.1, 0.2]


def test_what_the_loss_does_not_read_is_left_out_and_counted(tiny: Recipe) -> None:
    every = examples([("worst", 0.2)], [("worst", 0.2), ("best", 0.9)], [("best", 0.5), ("worst", 0.5)])
    pairs, left_out = read_by_loss(every, overridden(tiny, ("training.loss=dpo",)).training)
    assert (pairs.prompt_ids, left_out) == (["b"], 3)
    assert [(one.row, one.k) for one in pairs.responses] == [(0, 0), (1, 1)]
    assert read_by_loss(every, tiny.training) == (every, 0)


def test_a_pairs_own_chance_comes_from_the_best_and_targets_without_it_are_refused(tiny: Recipe) -> None:
    ids = np.array([5], np.int32)
    pair = (TrainingResponse(0, 0, ids, 0.2, "worst", 0.5), TrainingResponse(1, 1, ids, 0.9, "best", 0.97))
    alone = (TrainingResponse(2, 0, ids, 0.9, "best"),)
    found = labels_of([TrainingPrompt("a", ids, pair), TrainingPrompt("b", ids, alone)])
    assert found.pair_probability.tolist() == [0.97, 0.97, 0.5]
    single = overridden(tiny, ("training.loss=sppo_single",)).training
    with pytest.raises(TrainError, match=r"prompt 'a' lack P\(best > worst\), which sppo_single trains on.*estimate again"):
        read_by_loss(examples([("best", 0.9), ("worst", 0.2)]), single)


def test_a_gate_falls_from_1_to_0_between_gate_from_and_equal_texts() -> None:
    one = examples([("best", 0.9), ("worst", 0.2)], [("best", 0.9), ("worst", 0.2)], [("best", 0.9), ("worst", 0.2)])
    said = texts(
        a=["the red fox", "the red fox"],
        b=["the red fox", "the red dog"],  # bigrams (start the)(the red) of 6 different ones: 2 / 6
        c=["yes", "no"],
    )
    # 1 - 1; (1 - 1/3) / (1 - .2) = 5/6; nothing in common: 1 / .8, cut to 1
    assert response_gates(one, said, 0.2) == pytest.approx([0, 0, 5 / 6, 5 / 6, 1, 1])
    assert response_gates(one, said, 0.5) == pytest.approx([0, 0, 1, 1, 1, 1])


def test_of_several_opponents_the_most_similar_counts_and_without_one_nothing_is_gated() -> None:
    one = examples([("best", 0.9), ("other", 0.8), ("worst", 0.2)], [("worst", 0.4)])
    said = texts(a=["the red fox", "the red fox", "the red dog"], b=["the red fox"])
    # best and other say the same, but both won; to the worst each has 1/3
    assert response_gates(one, said, 0.0) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1])


def test_a_response_without_a_text_is_refused() -> None:
    with pytest.raises(TrainError, match="prompt 'a', response 1 has no text"):
        response_gates(examples([("best", 0.9), ("worst", 0.2)]), texts(a=["one"]), 0.5)
