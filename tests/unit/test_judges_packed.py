"""The packed encoder against the one that training differentiates: other work, the same numbers."""

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from sppo.judges.encoder import EncoderShape, build_encoder, encode, encoder_shape
from sppo.judges.flex import FlexAttention
from sppo.judges.kernel import positions_kernel
from sppo.judges.packed import Attention, PackedEncoder, Rows, pack
from sppo.judges.segments import fill_rows
from sppo.judges.sliced import Run, SlicedAttention, equal_runs, lookup_of

FIELDS: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": 20,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
LENGTHS = [700, 60, 60, 60, 31, 5]
"""One longer than the scores that are computed at once, three of equal length, one of no more tokens than are asked for."""
ASKED = (0, 2, 4)


def random_encoder(changes: dict[str, Any]) -> tuple[torch.nn.ModuleDict, EncoderShape]:
    shape = encoder_shape({**FIELDS, **changes})
    encoder = build_encoder(shape)
    draw = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    return encoder.eval().requires_grad_(False), shape


def questions(lengths: list[int]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(1, 40, (length,), generator=draw) for length in lengths]


def states_of(encoder: torch.nn.ModuleDict, shape: EncoderShape, attention: Attention, lengths: list[int]) -> torch.Tensor:
    rows = pack(lengths)
    wanted = torch.tensor([start + place for start in rows.starts for place in ASKED])
    with torch.inference_mode():
        return PackedEncoder(encoder, shape, attention).encode(torch.cat(questions(lengths)), rows, wanted)


def states_one_by_one(encoder: torch.nn.ModuleDict, shape: EncoderShape, lengths: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found = [encode(encoder, shape, ids[None], torch.ones(1, len(ids), dtype=torch.long)) for ids in questions(lengths)]
    return torch.cat([states[0, list(ASKED)] for states in found])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_buckets": -1},
        {"norm_rel_ebd": "none"},
        {"position_buckets": 256, "max_relative_positions": -1},
        {"num_hidden_layers": 1},
    ],
    ids=["buckets", "no buckets", "no norm", "as PairRM", "one layer"],
)
@pytest.mark.parametrize("with_kernel", [True, False], ids=["kernel", "torch"])
def test_packed_questions_have_the_states_that_each_has_alone(changes: dict[str, Any], with_kernel: bool) -> None:
    encoder, shape = random_encoder(changes)
    words: torch.Tensor = encoder["embeddings"]["word_embeddings"].weight  # type: ignore[index, union-attr, assignment]
    kernel = positions_kernel(torch.float32) if with_kernel else None
    found = states_of(encoder, shape, SlicedAttention(shape, words, kernel), LENGTHS)
    torch.testing.assert_close(found, states_one_by_one(encoder, shape, LENGTHS), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"position_buckets": 256, "max_relative_positions": -1}], ids=["buckets", "as PairRM"])
def test_what_runs_on_cuda_is_exact(changes: dict[str, Any]) -> None:
    """The same tables, tiles and lookups, through torch's uncompiled FlexAttention, which runs on CPU."""
    encoder, shape = random_encoder({**changes, "hidden_size": 64})
    lengths = [300, 129, 128, 60, 60, 31, 5]  # questions that end within, at and past a tile of 128
    found = states_of(encoder, shape, FlexAttention(shape, flex_attention, torch.device("cpu")), lengths)
    torch.testing.assert_close(found, states_one_by_one(encoder, shape, lengths), atol=2e-5, rtol=1e-5)


def test_work_space_of_an_earlier_batch_leaves_no_trace() -> None:
    encoder, shape = random_encoder({})
    words: torch.Tensor = encoder["embeddings"]["word_embeddings"].weight  # type: ignore[index, union-attr, assignment]
    attention = SlicedAttention(shape, words)
    first = states_of(encoder, shape, attention, [60, 31]).clone()
    states_of(encoder, shape, attention, [90, 60, 7])
    assert torch.equal(states_of(encoder, shape, attention, [60, 31]), first)


def test_a_lookup_finds_the_position_of_every_distance() -> None:
    # 3 tokens, distances -2 .. 2: five positions, 6 to 10 of 16; query 2 and key 0 are 2 apart, position 4 of those that occur
    lookup = lookup_of(encoder_shape(FIELDS), 3, flat=True)
    assert (lookup.first, lookup.positions, lookup.apart.tolist()) == (6, 5, [0, 1, 2, 3, 4])
    assert lookup.by_query is not None
    assert lookup.by_query.view(3, 3).tolist() == [[2, 1, 0], [8, 7, 6], [14, 13, 12]]  # q * 5 + position
    assert lookup.by_key is not None
    assert lookup.by_key.view(3, 3).tolist() == [[6, 4, 2], [9, 7, 5], [12, 10, 8]]  # position * 3 + k


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_is_the_softmax_of_all_three_scores(dtype: torch.dtype, apart: float, threads: int) -> None:
    """bf16 has 8 bits: a share of 1 is off by 0.004 at most. Scores of -90 and below are 0, and a nan stays in its row."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernel = positions_kernel(dtype)
    finally:
        torch.set_num_threads(before)
    if kernel is None:
        pytest.skip("no C compiler")
    lookup = lookup_of(encoder_shape(FIELDS), 37, flat=False)
    draw = torch.Generator().manual_seed(3)
    shapes = ((3, 37, 37), (3, 37, lookup.positions), (3, lookup.positions, 37))
    scores, by_query, by_key = (torch.randn(*shape, generator=draw).mul(3).to(dtype) for shape in shapes)
    scores[0, 0, 1:] -= 200.0
    scores[1, 2, 3] = float("nan")
    near = lookup.apart.long().unfold(0, 37, 1).flip(1).expand(3, -1, -1)  # (3, 37, 37)
    whole = scores.double() + by_query.double().gather(2, near) + by_key.double().gather(1, near)
    kernel.softmax(scores, by_query, by_key, lookup.apart)
    assert scores[1, 2].isnan().all()
    torch.testing.assert_close(scores.double(), torch.softmax(whole, -1), atol=apart, rtol=apart, equal_nan=True)


def test_questions_of_equal_length_are_computed_together() -> None:
    assert equal_runs(Rows([0, 4, 8, 9], [4, 4, 1, 4])) == [Run(0, 2, 4), Run(8, 1, 1), Run(9, 1, 4)]


def test_batches_hold_as_many_tokens_as_fit_and_no_padding() -> None:
    # longest first: 9; then 5 + 4 (10 would be exceeded by 2); then 2
    assert fill_rows([4, 9, 2, 5], 10) == [[1], [3, 0], [2]]
    assert fill_rows([30, 40], 10) == [[1], [0]]
