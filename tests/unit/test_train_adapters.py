"""Low-rank adapters, and 4-bit weights under them: what is trained, what is not, and what the next policy is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sppo.errors import PolicyError, RecipeError
from sppo.recipe import LoraAdapter, NoAdapter, QloraAdapter, Recipe, overridden
from sppo.train import nf4
from sppo.train.adapters import adapt, adapt_linear, adapted_layers, update_of, without_adapter, write_merged_policy

KINDS = ("llama", "mistral", "gemma2")
LORA = LoraAdapter(kind="lora", rank=4, alpha=8)
QLORA = QloraAdapter(kind="qlora", rank=4, alpha=8)
TOKENS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def logits(policy: Any) -> torch.Tensor:
    found: torch.Tensor = policy(TOKENS, use_cache=False).logits
    return found


def moved(policy: Any) -> Any:
    """The policy with every B drawn anew, as if it had been trained."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in adapted_layers(policy).values():
            layer.lora_b.normal_(std=0.05, generator=draw)
    return policy


def plain(layer: Any) -> torch.Tensor:
    """(out, in) fp32, the layer's W, from 4 bits if it is so."""
    if layer.weight is not None:
        weight: torch.Tensor = layer.weight.detach()
        return weight
    shape = torch.Size((layer.out_features, layer.in_features))
    return nf4.unpacked(layer.codes, layer.scale_bits.view(torch.float32), shape, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_turned_off(
    kind: str, adapter: LoraAdapter | QloraAdapter, random_policy: Callable[[str], Path]
) -> None:
    policy = load(random_policy(kind))
    before = logits(policy)
    names = adapt(policy, adapter, seed=1)
    assert len(names) == 2 * 7  # q, k, v, o, gate, up and down of two layers
    start = logits(policy)
    if adapter.kind == "lora":
        assert torch.equal(start, before)
    moved(policy)
    assert (logits(policy) - start).abs().max() > 1e-3
    with without_adapter(policy):
        assert torch.equal(logits(policy), start)
    assert (logits(policy) - start).abs().max() > 1e-3


def test_the_adapter_is_on_again_after_an_error(random_policy: Callable[[str], Path]) -> None:
    policy = load(random_policy("llama"))
    adapt(policy, LORA, 1)
    with pytest.raises(ZeroDivisionError), without_adapter(policy):
        _ = 1 / 0
    assert all(layer.adaptation.on for layer in adapted_layers(policy).values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_policy_is_the_one_with_the_adapter_on(
    kind: str, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = load(random_policy(kind))
    adapt(policy, LORA, 1)
    expected = logits(moved(policy))
    written = write_merged_policy(policy, random_policy(kind), tmp_path / "next", writes=True)
    assert {path.name for path in written} == {path.name for path in random_policy(kind).iterdir()}
    torch.testing.assert_close(logits(load(tmp_path / "next")), expected, rtol=0, atol=1e-6)


def test_a_4_bit_base_comes_out_unquantised_plus_the_update(random_policy: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    policy = load(random_policy("llama"))
    adapt(policy, QLORA, 1)
    layers = adapted_layers(moved(policy))
    write_merged_policy(policy, random_policy("llama"), tmp_path / "next", writes=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (random_policy("llama"), tmp_path / "next"))
    assert before.keys() == after.keys()
    for name, value in after.items():
        layer = layers.get(name.removesuffix(".weight"))
        # 8/4 B A
        expected = before[name] if layer is None else before[name] + 2 * layer.lora_b.detach() @ layer.lora_a.detach()
        assert torch.equal(value, expected)


def test_ranks_that_do_not_write_take_part_and_write_nothing(random_policy: Callable[[str], Path], tmp_path: Path) -> None:
    policy = load(random_policy("llama"))
    adapt(policy, LORA, 1)
    assert write_merged_policy(policy, random_policy("llama"), tmp_path / "next", writes=False) == []
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_only_the_adapter_is_trained_and_its_gradient_is_that_of_the_whole_weight(
    adapter: LoraAdapter | QloraAdapter, random_policy: Callable[[str], Path]
) -> None:
    """With G the gradient by W + s B A, computed on a plain model: by A it is s B^T G, and by B it is s G A^T."""
    policy = load(random_policy("llama"))
    names = adapt(policy, adapter, 1)
    logits(moved(policy)).square().mean().backward()
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert trained == {f"{name}.lora_{which}" for name in names for which in "ab"}
    assert trained == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    whole = load(random_policy("llama"))
    with torch.no_grad():
        for name, layer in adapted_layers(policy).items():
            whole.get_submodule(name).weight.copy_(plain(layer) + update_of(layer))
    logits(whole).square().mean().backward()
    for name, layer in adapted_layers(policy).items():
        full = whole.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.lora_a.grad, 2 * layer.lora_b.detach().T @ full, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(layer.lora_b.grad, 2 * full @ layer.lora_a.detach().T, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_recomputed_activations_give_the_same_gradients(
    adapter: LoraAdapter | QloraAdapter, random_policy: Callable[[str], Path]
) -> None:
    found = []
    for recompute in (False, True):
        policy = load(random_policy("gemma2")).train()
        adapt(policy, adapter, 1)
        if recompute:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        logits(moved(policy)).square().mean().backward()
        found.append([parameter.grad for parameter in policy.parameters() if parameter.requires_grad])
    assert len(found[0]) == 2 * 14
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_embeddings_and_head_are_never_adapted(random_policy: Callable[[str], Path]) -> None:
    tied = load(random_policy("gemma2"))
    adapt(tied, LORA, 1)
    assert type(tied.get_output_embeddings()) is torch.nn.Linear
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    with pytest.raises(PolicyError, match="names 'lm_head' and LlamaForCausalLM has no such linear layer"):
        adapt(load(random_policy("llama")), LORA.model_copy(update={"modules": ("lm_head",)}), 1)


def test_modules_are_ends_of_names_and_each_must_be_found(random_policy: Callable[[str], Path]) -> None:
    policy = load(random_policy("llama"))
    some = LORA.model_copy(update={"modules": ("self_attn.q_proj", "down_proj")})
    assert adapt(policy, some, 1) == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    wrong = LORA.model_copy(update={"modules": ("q_proj", "_proj")})
    with pytest.raises(PolicyError, match=r"names '_proj' .* expected some of down_proj, gate_proj, k_proj, o_proj, q_proj"):
        adapt(load(random_policy("llama")), wrong, 1)


def test_the_start_depends_on_seed_and_name_alone(random_policy: Callable[[str], Path]) -> None:
    def start(seed: int, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
        policy = load(random_policy("llama"))
        adapt(policy, LORA.model_copy(update={"modules": modules}), seed)
        return {name: layer.lora_a.detach() for name, layer in adapted_layers(policy).items()}

    every, some = start(1, ("q_proj", "o_proj")), start(1, ("o_proj",))
    assert len(every) == 2 * len(some) == 4
    assert all(torch.equal(every[name], value) for name, value in some.items())
    assert not torch.equal(*some.values())
    other = start(2, ("o_proj",))
    assert not any(torch.equal(other[name], value) for name, value in some.items())
    # kaiming uniform with a = sqrt(5): between -1/sqrt(64) and 1/sqrt(64)
    assert all(0.11 < value.abs().max() <= 0.125 for value in some.values())


def test_a_copy_of_an_adapted_policy_computes_with_its_own_weights(random_policy: Callable[[str], Path]) -> None:
    policy = load(random_policy("llama"))
    adapt(policy, LORA, 1)
    before = logits(policy)
    moved(copy.deepcopy(policy))
    assert torch.equal(logits(policy), before)


def test_a_policy_cast_to_bf16_keeps_its_4_bit_weights(random_policy: Callable[[str], Path]) -> None:
    policy = load(random_policy("llama"))
    adapt(policy, QLORA, 1)
    before = {name: plain(layer) for name, layer in adapted_layers(policy).items()}
    policy.bfloat16()
    assert all(torch.equal(plain(layer), before[name]) for name, layer in adapted_layers(policy).items())
    assert logits(policy).dtype == torch.bfloat16


def test_biases_stay() -> None:
    inputs = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    for in_4_bits in (False, True):
        layer = torch.nn.Linear(64, 3)
        adapt_linear(layer, 2, 1.0, in_4_bits, torch.Generator())
        expected = inputs @ plain(layer).T + layer.bias
        torch.testing.assert_close(layer(inputs), expected)


def test_nf4_has_the_papers_levels() -> None:
    # arXiv:2305.14314, appendix E, to four digits
    below = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911]
    above = [0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    assert nf4.levels() == pytest.approx(below + above, abs=6e-5)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_the_error_of_4_bits_is_bounded_by_the_blocks_largest_weight(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    codes, scales = nf4.packed(values)
    assert (len(codes), len(scales)) == (-(-size // 2), -(-size // 64))
    found = nf4.unpacked(codes, scales, values.shape, torch.float32)
    assert ((found - values).abs() <= nf4.LARGEST_ERROR * scales.repeat_interleave(64)[:size]).all()
    # the largest weight of a block, and zeros, are exact
    for start in range(0, size, 64):
        at = start + int(values[start : start + 64].abs().argmax())
        assert found[at].abs() == values[at].abs()
    again = nf4.unpacked(*nf4.packed(found), found.shape, torch.float32)
    assert torch.equal(again.abs(), found.abs()) or size == 1


def test_normal_weights_lose_9_percent_of_their_size_in_4_bits_and_zeros_nothing() -> None:
    values = torch.randn(1000, 640, generator=torch.Generator().manual_seed(1))
    error = nf4.unpacked(*nf4.packed(values), values.shape, torch.float32) - values
    assert error.square().mean().sqrt().item() == pytest.approx(0.092, abs=0.001)
    assert not nf4.unpacked(*nf4.packed(torch.zeros(70)), torch.Size((70,)), torch.float32).any()


def test_a_4_bit_layer_keeps_no_unpacked_weight_for_the_backward_pass() -> None:
    kept: list[torch.Size] = []
    layer = torch.nn.Linear(128, 256, bias=False)
    adapt_linear(layer, 2, 1.0, True, torch.Generator())
    inputs = torch.randn(2, 128, requires_grad=True)

    def seen(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.shape)
        return value

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda value: value):
        layer(inputs).sum().backward()
    assert torch.Size((256, 128)) not in kept
    assert torch.Size((256 * 128 // 2,)) in kept  # the codes


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("{kind: lora, rank: 0, alpha: 16}", "training.adapter.rank is 0; expected 1 or more"),
        ("{kind: lora, rank: 8, alpha: 0}", "training.adapter.alpha is 0; expected more than 0"),
        ("{kind: qlora, rank: 8, alpha: 16, modules: []}", "training.adapter.modules is "),
        ("{kind: lora, rank: 8, alpha: 16, modules: [q_proj, q_proj]}", "names a module twice"),
        ("{kind: lora, rank: 8, alpha: 16, modules: ['']}", "expected ends of module names, such as q_proj"),
        ("{kind: lora, rank: 8}", "'training.adapter.alpha' is missing"),
        ("{kind: lora, rank: 8, alfa: 16}", "unknown key 'training.adapter.alfa'; did you mean 'alpha'"),
        ("{kind: dora, rank: 8, alpha: 16}", "expected one of 'none', 'lora', 'qlora'"),
        ("lora", "training.adapter"),
    ],
)
def test_adapters_that_cannot_be_are_refused(tiny: Recipe, adapter: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overridden(tiny, (f"training.adapter={adapter}",))


def test_without_one_all_weights_are_trained(tiny: Recipe) -> None:
    assert tiny.training.adapter == NoAdapter(kind="none")
    assert overridden(tiny, ("training.adapter={kind: lora, rank: 4, alpha: 8}",)).training.adapter == LORA
