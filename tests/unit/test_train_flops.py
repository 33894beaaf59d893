"""Useful FLOPs and parameter counts: by hand, against a mask drawn out, and against what torch multiplies in real models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sppo.errors import PolicyError
from sppo.recipe import LoraAdapter
from sppo.train.flops import causal_pairs, forward_flops, measured_peak, shared_pairs, training_flops, useful_mfu
from sppo.train.shape import ModelShape, shape_of

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
GEMMA_2_9B = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "sliding_window": 4096,
}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 8}),
    ("gemma", {}),
    ("gemma2", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("qwen3", {}),
]


def built(kind: str, values: dict[str, Any], device: str = "meta") -> Any:
    """A real model of a kind, small; on the device `meta` without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SMALL, "pad_token_id": None, **values})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def visible(prompt: int, responses: Sequence[int], window: int | None) -> int:
    """Pairs of a packed row, its mask drawn out."""
    owner = np.repeat(np.arange(1 + len(responses)), [prompt, *responses])  # (T,) 0 the prompt, then each response
    starts = [0, *[prompt] * len(responses)]
    places = np.concatenate([start + np.arange(n) for start, n in zip(starts, [prompt, *responses], strict=True)])  # (T,)
    distance = places[:, None] - places[None, :]  # (T, T)
    seen = ((owner[:, None] == owner[None, :]) | (owner[None, :] == 0)) & (distance >= 0)
    return int((seen & (distance < (window or 10**9))).sum())


def test_causal_pairs_are_a_triangle_until_the_window_clips_it() -> None:
    assert causal_pairs(4) == 10  # 1 + 2 + 3 + 4
    assert causal_pairs(4, window=2) == 7  # 1 + 2 + 2 + 2
    assert causal_pairs(4, window=4) == 10


@pytest.mark.parametrize("window", [None, 1, 3, 7, 12, 100])
def test_shared_pairs_are_what_a_packed_rows_mask_leaves(window: int | None) -> None:
    assert shared_pairs((3, [2, 4]), None) == 6 + (2 * 3 + 3) + (4 * 3 + 10)  # triangle, then rectangle + triangle each: 37
    for prompt, responses in ((1, [1]), (3, [2, 4]), (9, [5]), (6, [11, 1, 2, 8])):
        assert shared_pairs((prompt, responses), window) == visible(prompt, responses, window)


def test_flops_of_two_layers_are_worked_out_by_hand() -> None:
    shape = ModelShape("llama", 4, 8, 2, 1, 2, vocabulary=10, tied=False, windows=(None, 3))
    # a layer: query 4 x 4, key and value 4 x 2 each, output 4 x 4, gate, up and down 4 x 8 each: 16 + 16 + 16 + 96 = 144
    assert shape.layer_weights == 2 * 144
    # tokens 3 + 2 + 4 = 9: 2 x 288 x 9 = 5184
    # pairs 37 without a window; with one of 3: 1 + 2 + 3, then 3 each for 6 response tokens = 24; 4 x 2 x 2 x 61 = 976
    # the head at 6 response tokens: 2 x 4 x 10 x 6 = 480
    assert forward_flops(shape, [(3, [2, 4])]) == 5184 + 976 + 480
    assert training_flops(shape, [(3, [2, 4])]) == 3 * 6640
    # rank 1 adapters: in + out of the seven, 8 + 6 + 6 + 8 + 12 x 3 = 64 a layer, 2 x 128 x 9 = 2304 of their own
    adapter = LoraAdapter(kind="lora", rank=1, alpha=2)
    assert training_flops(shape, [(3, [2, 4])], adapter) == 2 * (5184 + 480) + 3 * (976 + 2304)


def test_a_shared_prompt_is_computed_once() -> None:
    shape = shape_of({"model_type": "llama", **SMALL})
    together = forward_flops(shape, [(500, [10, 10])])
    apart = forward_flops(shape, [(500, [10]), (500, [10])])
    assert together < 0.53 * apart


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_parameters_are_counted_exactly(kind: str, values: dict[str, Any]) -> None:
    model = built(kind, values)
    shape = shape_of(model.config.to_dict())
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    stored = model.config.to_diff_dict()  # as save_pretrained writes it: what is as transformers takes it may be left out
    assert shape_of({"model_type": kind, **stored}) == shape


def test_the_published_sizes_come_out() -> None:
    assert shape_of(GEMMA_2_9B).parameters == 9_241_705_984
    assert shape_of(GEMMA_2_9B).windows[:3] == (4096, None, 4096)


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_flops_are_those_that_torch_counts_in_a_real_model(kind: str, values: dict[str, Any]) -> None:
    """Eager attention multiplies the whole square, of which a causal mask leaves the pairs; everything else is equal."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = built(kind, values, "cpu")
    shape = shape_of(model.config.to_dict())
    tokens = 24
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False).logits  # (1, T, V)
        forward = counter.get_total_flops()
        logits.sum().backward()
    attention = 4 * shape.queries * shape.layers * tokens**2
    weights = 2 * (shape.layer_weights + shape.embedding) * tokens
    assert forward == weights + attention
    assert counter.get_total_flops() == 3 * (weights + attention)
    # ours on one token of prompt and 23 of response: the head at 23, the pairs that the windows leave
    pairs = sum(causal_pairs(tokens, window) for window in shape.windows)
    skipped = 2 * shape.embedding + 4 * shape.queries * (shape.layers * tokens**2 - pairs)
    assert training_flops(shape, [(1, [23])]) == 3 * (weights + attention - skipped)


def test_mfu_is_useful_work_over_the_peak_of_all_devices() -> None:
    assert useful_mfu(flops=4e15, seconds=2, devices=8, peak=1e15) == 0.25


def test_the_peak_of_a_cpu_is_measured_and_finite() -> None:
    assert 1e8 < measured_peak("float32", seconds=0.05) < 1e14


def test_an_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match="model_type 'mamba'; expected one of llama, mistral, gemma, gemma2, qwen2, qwen3"):
        shape_of({"model_type": "mamba"})
    with pytest.raises(PolicyError, match="has no hidden_size; expected a whole number"):
        shape_of({"model_type": "llama"})
