"""Policies in the shape of Gemma-2 with random weights, and the gradients of one loss by several ways: our packed rows, and
padded sequences with full logits. For gpu_training.py. B responses."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.material.packed import read_prompts, training_of
from benchmarks.material.preferences import Asked, make_steps, mixed_lengths
from benchmarks.material.sides import RECIPE
from benchmarks.rivals import released
from sppo.train import attention
from sppo.train.forward import packed_policy
from sppo.train.labels import labels_of
from sppo.train.objective import objective_of
from sppo.train.packing import PackedBatch, pack

Shape = dict[str, Any]
"""Fields of Gemma2Config."""
Gradients = dict[str, torch.Tensor]
Array = npt.NDArray[np.float64]


def shape(hidden: int, inner: int, layers: int, heads: int, keys: int, **more: Any) -> Shape:
    """Of a Gemma-2."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        **more,
    }


SMALL_HEADS = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 48, "vocab_size": 1000}
CHECKED = shape(256, 512, 4, 4, 2, **SMALL_HEADS)
"""Small enough for fp32 on a CPU, with windows shorter than its sequences."""


def make_model(values: Shape, device: str, dtype: torch.dtype) -> Any:
    """A Gemma-2 of random weights, made where it stays, with our attention."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    with torch.device(device):
        config = Gemma2Config(**values)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.register()).train()


def gradient_differences(device: str) -> dict[str, float]:
    """This device's attention, fp32 and bf16, and padded bf16, each against packed rows in fp32 on the CPU."""
    [batch] = make_steps(mixed_lengths(6, 2, 160), CHECKED["vocab_size"], 6)
    exact_policy = make_model(CHECKED, "cpu", torch.float32)
    before = packed_log_probs(exact_policy, batch)  # (B,)
    exact = packed_gradients(exact_policy, batch, before)
    found = {"padded_fp32_cpu": difference(padded_gradients(exact_policy, batch, before), exact)}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        policy = copy.deepcopy(exact_policy).to(device)
        for weight in policy.parameters():  # and no buffer: angles of positions stay fp32, as when a policy is read
            weight.data = weight.data.to(dtype)
        found[f"packed_{name}"] = difference(packed_gradients(policy, batch, before), exact)
    found["padded_bf16"] = difference(padded_gradients(policy, batch, before), exact)
    print(
        "gradients' relative difference from packed rows in fp32 on the CPU, Gemma-2 with windows and soft-caps: "
        + ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    )
    return {f"gradient_{name}": float(f"{value:.3g}") for name, value in found.items()}


def packed_row(batch: list[Asked]) -> PackedBatch:
    """All of them in one row."""
    [prompts] = read_prompts([batch])
    return pack([(one.token_ids, [response.token_ids for response in one.responses]) for one in prompts])


def packed_log_probs(policy: Any, batch: list[Asked]) -> Array:
    """(B,) as the fused head sums them."""
    with torch.no_grad():
        found: Array = packed_policy(policy)(packed_row(batch)).double().cpu().numpy()
    return found


def packed_gradients(policy: Any, batch: list[Asked], before: Array) -> Gradients:
    """By one packed row, the device's attention and the fused head."""
    labels = labels_of(read_prompts([batch])[0])
    objective = objective_of(training_of(RECIPE), labels, before, 1.0, policy.device.type)
    policy.zero_grad()
    packed_policy(policy)(packed_row(batch), objective)[0].backward()
    return _taken(policy)


def padded_gradients(policy: Any, batch: list[Asked], before: Array) -> Gradients:
    """By padded sequences, eager attention, and the logits of every token."""
    ours = policy.config._attn_implementation
    policy.set_attn_implementation("eager")
    policy.zero_grad()
    log_probs = released.summed(policy, *(each.to(policy.device) for each in released.stacked(batch)))  # (B,), chosen first
    pairs = len(batch)
    order = np.arange(2 * pairs).reshape(pairs, 2).T.ravel()  # (B,) in a row a prompt's two stand together
    wins = torch.tensor([asked.wins[k] for k in (0, 1) for asked in batch])  # (B,)
    targets = torch.from_numpy(before[order]) + RECIPE["eta"] * (wins.double() - 0.5)  # (B,)
    # of the normalised loss, as the packed way's objective has it
    (((log_probs.double() - targets.to(policy.device)) / RECIPE["eta"]) ** 2).sum().backward()
    policy.set_attn_implementation(ours)
    return _taken(policy)


def _taken(policy: Any) -> Gradients:
    found = {name: each.grad.detach().double().cpu() for name, each in policy.named_parameters() if each.grad is not None}
    policy.zero_grad()
    return found


def difference(one: Gradients, exact: Gradients) -> float:
    """Norm of the difference of all gradients, over the norm of the exact ones."""

    def norm(parts: Sequence[torch.Tensor]) -> float:
        return float(torch.stack([part.square().sum() for part in parts]).sum().sqrt())

    return norm([one[name] - exact[name] for name in exact]) / norm(list(exact.values()))
