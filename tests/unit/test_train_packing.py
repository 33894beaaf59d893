"""Packed rows and the plan that shares them out: every place worked out by hand."""

import itertools

import numpy as np
import pytest

from sppo.train.packing import Family, Span, pack, plan


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_a_row_holds_each_prompt_once_and_then_its_responses() -> None:
    row = pack([(ids(5, 6), [ids(7, 0), ids(8)]), (ids(4), [ids(3, 2, 1)])])
    assert row.token_ids.tolist() == [5, 6, 7, 0, 8, 4, 3, 2, 1]
    # each response goes on where its prompt ended
    assert row.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]
    assert row.families == (Family(Span(0, 2), (Span(2, 2), Span(4, 1))), Family(Span(5, 1), (Span(6, 3),)))
    assert (row.tokens, row.longest) == (9, 4)
    assert row.responses_each == (2, 1)


def test_a_prompts_last_token_predicts_the_first_token_of_each_response() -> None:
    row = pack([(ids(5, 6), [ids(7, 0), ids(8)]), (ids(4), [ids(3, 2, 1)])])
    # 7 and 8 are predicted at 6's place, 0 at 7's; 3 at 4's, and so on
    assert row.predictors.tolist() == [1, 2, 1, 5, 6, 7]
    assert row.labels.tolist() == [7, 0, 8, 3, 2, 1]
    assert row.lengths == (2, 1, 3)


def test_a_plan_has_as_few_rounds_as_fit_and_fills_them_evenly() -> None:
    # 60 tokens, at most 40 at once, so two. Longest first onto the emptiest: 20 | 19, then 16 to 19, then 5 to 20
    assert plan([16, 20, 19, 5], ranks=1, tokens_per_device=40).rounds == (((2, 0),), ((1, 3),))
    assert plan([16, 20, 19, 5], ranks=1, tokens_per_device=60).rounds == (((1, 2, 0, 3),),)


def test_the_ranks_of_a_round_have_micro_batches_of_like_size() -> None:
    # 40 beside 30, then 20 beside 10: the second rank waits for 10 tokens twice, of 120 places
    shared = plan([10, 40, 20, 30], ranks=2, tokens_per_device=40)
    assert shared.rounds == (((1,), (3,)), ((2,), (0,)))
    assert shared.waste == pytest.approx(1 / 6)
    assert plan([10, 40, 20, 30], ranks=2, tokens_per_device=50).waste == 0  # 40 + 10 beside 30 + 20


def test_a_prompt_longer_than_the_budget_is_a_micro_batch_of_its_own() -> None:
    shared = plan([100, 10, 10], ranks=1, tokens_per_device=30)
    assert sorted(map(sorted, shared.of_rank(0))) == [[0], [1, 2]]


def test_fewer_prompts_than_ranks_leave_some_idle_and_all_still_meet() -> None:
    shared = plan([7], ranks=3, tokens_per_device=10)
    assert [shared.of_rank(rank) for rank in range(3)] == [[[0]], [[]], [[]]]
    assert shared.waste == pytest.approx(2 / 3)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("budget", [40, 100, 1000])
def test_every_prompt_is_in_exactly_one_micro_batch_and_none_is_over_the_budget(ranks: int, budget: int) -> None:
    tokens = np.random.default_rng(budget + ranks).integers(3, 60, 50).tolist()
    shared = plan(tokens, ranks, budget)
    mine = [shared.of_rank(rank) for rank in range(ranks)]
    assert len({len(each) for each in mine}) == 1  # as many for each rank
    assert sorted(itertools.chain(*itertools.chain(*mine))) == list(range(50))
    for places in itertools.chain(*mine):
        assert sum(tokens[place] for place in places) <= budget or len(places) == 1
    assert shared == plan(tokens, ranks, budget)


def test_real_lengths_waste_little() -> None:
    draws = np.random.default_rng(0)
    tokens = np.exp(draws.uniform(np.log(30), np.log(500), (512, 3))).sum(1).astype(int).tolist()
    shared = plan(tokens, ranks=8, tokens_per_device=16384)
    assert len(shared.rounds) == -(-sum(tokens) // (8 * 16384))  # not one more than the tokens alone ask for
    assert shared.waste < 0.01
