"""Attention of packed rows against every pair of tokens looked at one by one, in each way of computing it."""

import math
from typing import Any

import numpy as np
import pytest

from sppo.errors import TrainError
from sppo.train import attention_flex, attention_varlen
from sppo.train.attention import Attend, attend_in_segments, packed_attention
from sppo.train.packing import PackedBatch, pack

HEADS, GROUPS, WIDTH = 4, 2, 8


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def row(*prompts: tuple[int, tuple[int, ...]]) -> PackedBatch:
    """A row of prompts and responses of these lengths."""
    return pack([(np.arange(length), [np.arange(each) for each in responses]) for length, responses in prompts])


ROWS = {
    "pairs": row((9, (5, 12)), (1, (1, 1)), (20, (3, 7))),
    "all five": row((6, (4, 1, 9, 2, 6))),
    "one response each": row((3, (8,)), (11, (2,))),
}


def sees(packing: PackedBatch, window: int | None) -> np.ndarray:
    """(N, N): who sees whom, from the words of the definition."""
    spans = [(f, s, span) for f, family in enumerate(packing.families) for s, span in enumerate((family[0], *family[1]))]
    owner = [next((f, s) for f, s, span in spans if span.start <= place < span.end) for place in range(packing.tokens)]
    found = np.zeros((packing.tokens, packing.tokens), bool)
    for one, (family, segment) in enumerate(owner):
        for other, (its_family, its_segment) in enumerate(owner):
            related = family == its_family and its_segment in (0, segment)
            distance = packing.positions[one] - packing.positions[other]
            found[one, other] = related and distance >= 0 and (window is None or distance < window)
    return found


def dense(query: Any, key: Any, value: Any, packing: PackedBatch, scaling: float, window: int | None, cap: float | None) -> Any:
    """All scores at once, in the plainest words."""
    import torch

    key, value = (each.repeat_interleave(HEADS // GROUPS, 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~torch.from_numpy(sees(packing, window)), -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def varlen_written_out(
    query: Any, key: Any, value: Any, packing: PackedBatch, scaling: float, window: int | None, cap: float | None
) -> Any:
    """What a variable-length kernel makes of what it is given: segment s has queries[ends[s]:ends[s+1]], causal at its end."""
    import torch

    gathered = attention_varlen.gather(packing)
    keys, values = (each[0].transpose(0, 1)[gathered.keys].repeat_interleave(HEADS // GROUPS, 1) for each in (key, value))
    found = []
    for number in range(len(gathered.query_ends) - 1):
        mine = query[0].transpose(0, 1)[gathered.query_ends[number] : gathered.query_ends[number + 1]]  # (t, H, D)
        seen = slice(gathered.key_ends[number], gathered.key_ends[number + 1])
        scores = torch.einsum("thd,shd->hts", mine, keys[seen]) * scaling
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        before = scores.shape[2] - scores.shape[1]
        distance = torch.arange(scores.shape[1])[:, None] + before - torch.arange(scores.shape[2])[None, :]
        hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        found.append(torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -math.inf).softmax(-1), values[seen]))
    assert gathered.most_queries == max(np.diff(gathered.query_ends))
    assert gathered.most_keys == max(np.diff(gathered.key_ends))
    return torch.cat(found).unsqueeze(0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attend", [attend_in_segments, attention_flex.attend, varlen_written_out])
@pytest.mark.parametrize("window", [None, 1, 5, 14])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("name", ROWS)
def test_every_token_sees_its_prompt_and_its_own_response_so_far(
    attend: Attend, window: int | None, cap: float | None, name: str
) -> None:
    import torch

    packing = ROWS[name]
    draw = torch.Generator().manual_seed(3)
    shapes = [(1, heads, packing.tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    direction = torch.randn((1, packing.tokens, HEADS, WIDTH), generator=draw, dtype=torch.float64)
    if attend is attention_flex.attend:
        inputs = [each.detach() for each in inputs]  # uncompiled, on a CPU, it has no backward pass
    expected = dense(*inputs, packing, 0.3, window, cap)
    found = attend(*inputs, packing, 0.3, window, cap)
    assert torch.allclose(found, expected, atol=1e-12)
    if inputs[0].requires_grad:
        for mine, theirs in zip(
            torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
        ):
            assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", ROWS)
def test_in_16_bit_the_gradients_are_those_of_exact_attention_to_its_rounding(window: int | None, name: str) -> None:
    import torch

    packing = ROWS[name]
    draw = torch.Generator().manual_seed(3)
    shapes = [(1, heads, packing.tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in shapes]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    direction = torch.randn((1, packing.tokens, HEADS, WIDTH), generator=draw).bfloat16()
    expected = torch.autograd.grad(dense(*exact, packing, 0.3, window, None), exact, direction.double())
    found = torch.autograd.grad(attend_in_segments(*inputs, packing, 0.3, window, None), inputs, direction)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm()  # bf16 has 8 bits: each product rounds by up to 0.4 %


def test_under_autocast_attention_runs_in_its_dtype() -> None:
    import torch

    packing = ROWS["pairs"]
    inputs = [torch.randn(1, heads, packing.tokens, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packed_attention(Layer(), *inputs, None, packing=packing)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, packed_attention(Layer(), *(each.bfloat16() for each in inputs), None, packing=packing)[0])


class Layer:
    """Stands for an architecture's attention module."""


def call(**others: Any) -> Any:
    import torch

    packing = row((2, (2,)))
    query, key = torch.ones(1, HEADS, 4, WIDTH), torch.ones(1, GROUPS, 4, WIDTH)
    return packed_attention(Layer(), query, key, key, **{"attention_mask": None, "packing": packing, **others})


def test_a_window_that_no_sequence_is_longer_than_asks_for_no_mask_and_scaling_has_a_default() -> None:
    mixed, weights = call(sliding_window=4)
    assert mixed.shape == (1, 4, HEADS, WIDTH)
    assert weights is None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"packing": None}, "Layer was called without the layout of its packed row"),
        ({"attention_mask": 1}, "Layer asks for attention_mask in its attention; expected none"),
        ({"dropout": 0.1}, "Layer asks for dropout"),
        ({"s_aux": 1}, "Layer asks for s_aux"),
    ],
)
def test_an_architecture_that_computes_its_scores_differently_is_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        call(**others)


def test_variable_lengths_are_those_of_queries_and_of_the_keys_they_see() -> None:
    gathered = attention_varlen.gather(row((2, (1, 2)), (1, (1,))))
    # prompt 0 1, responses 2 and 3 4; prompt 5, response 6
    assert gathered.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 5, 6]
    assert gathered.query_ends.tolist() == [0, 2, 3, 5, 6, 7]
    assert gathered.key_ends.tolist() == [0, 2, 5, 9, 10, 12]
    assert (gathered.most_queries, gathered.most_keys) == (2, 4)


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_the_kernels_of_a_gpu_give_what_segments_give(kernel: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    packing = row((300, (200, 77)), (40, (130,)))
    window = 150
    inputs = [
        torch.randn(1, heads, packing.tokens, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    attend = attention_flex.attend if kernel == "flex" else attention_varlen.kernel_for(inputs[0], None)
    assert attend is not None
    direction = torch.randn(1, packing.tokens, HEADS, 64, device="cuda", dtype=torch.bfloat16)
    exact = [each.detach().float().requires_grad_() for each in inputs]
    expected = attend_in_segments(*exact, packing, 0.125, window, None)
    found = attend(*inputs, packing, 0.125, window, None)
    assert (found.float() - expected).norm() / expected.norm() < 0.01
    mine = torch.autograd.grad(found, inputs, direction)
    theirs = torch.autograd.grad(expected, exact, direction.float())
    for one, other in zip(mine, theirs, strict=True):
        assert (one.float() - other).norm() / other.norm() < 0.01
