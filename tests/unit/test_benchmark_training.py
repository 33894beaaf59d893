"""The training benchmarks: their material, their rivals' arithmetic, and how settings are chosen."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.material import sides
from benchmarks.material.preferences import (
    BOS,
    EOS,
    MAX_PROMPT,
    MAX_TOKENS,
    REAL,
    TINY,
    Asked,
    as_words,
    make_policy,
    make_steps,
    mixed_lengths,
    read_steps,
    real_lengths,
    write_steps,
)
from benchmarks.material.sides import OURS
from benchmarks.material.turns import Side
from benchmarks.rivals.released import stacked, summed


def test_lengths_of_the_mix_stay_in_its_ranges_and_do_not_change() -> None:
    found = mixed_lengths(200, 2)
    assert all(30 <= prompt <= 500 and all(50 <= each <= 500 for each in responses) for prompt, responses in found)
    assert found == mixed_lengths(200, 2)
    # half of a log-uniform draw from 30 to 500 lies below sqrt(30 x 500) = 122
    assert np.median([prompt for prompt, _ in found]) == pytest.approx(122, rel=0.25)


@pytest.mark.skipif(not REAL.is_file(), reason="the real answers are not there")
def test_real_lengths_are_cut_as_the_recipes_cut() -> None:
    found = real_lengths(100, 5)
    assert all(prompt <= MAX_PROMPT and max(responses) + prompt <= MAX_TOKENS for prompt, responses in found)
    assert {len(responses) for _, responses in found} == {5}


def test_every_response_ends_with_eos_and_preferences_are_spread_evenly(tmp_path: Path) -> None:
    steps = make_steps([(4, [3, 2, 5])], vocabulary=9, each=1)
    [[asked]] = steps
    assert (len(asked.prompt), [len(each) for each in asked.responses]) == (4, [3, 2, 5])
    assert asked.prompt[0] == BOS
    assert [each[-1] for each in asked.responses] == [EOS] * 3
    assert asked.wins == [1.0, 0.5, 0.0]
    assert asked.tokens == 14  # 4 + 3 + 2 + 5: the prompt once
    assert read_steps(write_steps(steps, tmp_path / "steps.json")) == steps


def test_the_tokenizer_for_trl_gives_the_very_ids_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    make_policy(tmp_path, TINY)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = [BOS, 17, 511, 3, EOS]
    assert as_words(ids) == "<s> t17 t511 t3 </s>"
    assert tokenizer(as_words(ids))["input_ids"] == ids


def test_the_references_way_stacks_chosen_over_rejected_and_scores_responses_alone() -> None:
    token_ids, present, labels = stacked([Asked([1, 5], [[6, 2], [7, 8, 2]], [1.0, 0.0])])
    assert token_ids.tolist() == [[1, 5, 6, 2, 0], [1, 5, 7, 8, 2]]
    assert present.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert labels.tolist() == [[-100, -100, 6, 2, -100], [-100, -100, 7, 8, 2]]


def test_the_references_way_sums_log_probs_of_the_next_token() -> None:
    import torch

    class Halving(torch.nn.Module):
        """Gives the token after id n (that is n + 1) probability 1/2 and the other three 1/6 each."""

        def forward(self, token_ids: torch.Tensor, **_: object) -> object:
            chances = torch.full((*token_ids.shape, 4), 1 / 6)
            chances.scatter_(2, ((token_ids + 1) % 4).unsqueeze(2), 0.5)
            return type("Output", (), {"logits": chances.log()})()

    token_ids = torch.tensor([[0, 1, 2, 0]])
    labels = torch.tensor([[-100, 1, 2, 0]])
    # 1 follows 0 and 2 follows 1: 1/2 each; 0 does not follow 2: 1/6
    expected = 2 * np.log(1 / 2) + np.log(1 / 6)
    assert summed(Halving(), token_ids, torch.ones_like(token_ids), labels).item() == pytest.approx(expected)


def test_the_fastest_settings_within_the_memory_budget_are_chosen_and_the_smallest_if_none_fits() -> None:
    def tried(cpu: float, memory: float) -> Side:
        return Side("", [], Path(), pairs=2, responses=4, cpu=[cpu], memory=memory)

    fast, slow, small = (OURS.changed(name) for name in ("fast", "slow", "small"))
    found = [(fast, tried(1.0, 5000)), (slow, tried(3.0, 3000)), (small, tried(4.0, 2000))]
    assert sides.fastest(found, budget=4000) is slow
    assert sides.fastest(found, budget=6000) is fast
    assert sides.fastest(found, budget=1000) is small


def test_precomputing_a_reference_counts_for_each_pair() -> None:
    # 6 CPU-seconds for 2 pairs, and 0.5 a pair before
    assert Side("", [], Path(), 2, 4, loaded={"precompute_per_pair": 0.5}, cpu=[8.0, 6.0]).cpu_per_pair == 3.5


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    side = Side("broken", [sys.executable, "-c", "raise ValueError('no such precision')"], tmp_path / "log", 1, 2)
    with pytest.raises(RuntimeError, match=r"(?s)broken ended with 1:.*no such precision"):
        side.start()
