"""The encoder against transformers' DebertaV2Model, on the same random weights."""

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from sppo.errors import JudgeError
from sppo.judges.encoder import build_encoder, distance_buckets, encode, encoder_shape

FIELDS: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
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


def both(fields: dict[str, Any]) -> tuple[torch.nn.ModuleDict, DebertaV2Model]:
    ours, theirs = build_encoder(encoder_shape(fields)), DebertaV2Model(DebertaV2Config(**fields))
    draw = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    theirs.load_state_dict(ours.state_dict())  # strict: the names and shapes are the same
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    "changes",
    [{}, {"position_buckets": -1}, {"norm_rel_ebd": "none"}, {"position_buckets": 256, "max_relative_positions": -1}],
    ids=["buckets", "no buckets", "no norm", "as PairRM"],
)
def test_states_are_those_of_transformers(changes: dict[str, Any]) -> None:
    """50 tokens: past the 20 distances that these encoders tell apart."""
    fields = {**FIELDS, **changes}
    ours, theirs = both(fields)
    ids = torch.randint(1, 40, (3, 50), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.inference_mode():
        found = encode(ours, encoder_shape(fields), ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_transformers() -> None:
    ours, theirs = both(FIELDS)
    ids = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    encode(ours, encoder_shape(FIELDS), ids, mask).sum(dim=-1).square().sum().backward()
    theirs(input_ids=ids, attention_mask=mask).last_hidden_state.sum(dim=-1).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        scale = float(expected[name].grad.abs().max()) + 1e-6
        torch.testing.assert_close(parameter.grad / scale, expected[name].grad / scale, atol=1e-4, rtol=1e-4)


def test_dropout_is_active_in_training_alone() -> None:
    ours, _ = both(FIELDS)
    shape, ids = encoder_shape(FIELDS), torch.arange(1, 9)[None]
    mask = torch.ones_like(ids)
    assert torch.equal(encode(ours, shape, ids, mask), encode(ours, shape, ids, mask))
    ours.train()
    assert not torch.equal(encode(ours, shape, ids, mask), encode(ours, shape, ids, mask))


def test_near_distances_have_rows_of_their_own_and_far_ones_share() -> None:
    # 8 buckets a direction: distances -4 .. 4 are rows 4 .. 12; beyond, log(d / 4) / log(19 / 4) * 3, rounded up, plus 4:
    # 5 -> .43 -> 1 -> 5; 7 -> 1.08 -> 2 -> 6; 13 -> 2.27 -> 3 -> 7; 19 -> 3 -> 7; 25 -> 3.53 -> 4 -> 8, past the last row's 7
    rows = distance_buckets(encoder_shape(FIELDS), 26, torch.device("cpu"))
    assert [int(rows[distance, 0]) - 8 for distance in (0, 1, 4, 5, 7, 13, 19, 25)] == [0, 1, 4, 5, 6, 7, 7, 7]
    assert [int(rows[0, distance]) - 8 for distance in (1, 4, 5, 7, 13, 25)] == [-1, -4, -5, -6, -7, -8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_biased_input": True}, "position_biased_input True; expected False"),
        ({"share_att_key": False}, "share_att_key False; expected True"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3; expected 0"),
        ({"pos_att_type": "p2c"}, "pos_att_type 'p2c'; expected p2c and c2p"),
        ({"num_attention_heads": 5}, "hidden_size 32, which does not divide into 5 heads"),
    ],
)
def test_an_encoder_unlike_deberta_v3_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        encoder_shape({**FIELDS, **changes})


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(JudgeError, match=r"lacks a field: .*'hidden_size'"):
        encoder_shape({name: value for name, value in FIELDS.items() if name != "hidden_size"})
