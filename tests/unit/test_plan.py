"""`sppo plan`: memory by part, work and time, by hand and against what autograd saves in real layers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppo.errors import PolicyError, RecipeError
from sppo.hardware import Hardware, TrainHardware, load_hardware
from sppo.plan import GIB, Asked, device_bytes, memory_on, plan, policy_shape, what_would_fit
from sppo.recipe import FolderModel, HubModel, LoraAdapter, OwnPrompts, QloraAdapter, Recipe, load_recipe
from sppo.train.memory import Memory, Part, activation_bytes, training_memory
from sppo.train.shape import ModelShape, shape_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"
GEMMA_2_9B = shape_of(
    {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    }
)
MODELS = ("llama", "mistral", "gemma", "gemma2", "qwen3")


@pytest.fixture
def gemma() -> Recipe:
    return load_recipe("gemma-2-9b-it", RECIPES)


def machine(name: str, **changes: object) -> Hardware:
    loaded = load_hardware(name, HARDWARE)
    return loaded.model_copy(update={"train": loaded.train.model_copy(update=changes)})


def always(memory: Memory) -> float:
    return sum(part.device for part in memory.parts if part.when == "always" and part.name != "CUDA context")


def test_nine_billion_parameters_do_not_fit_one_card_without_offload(gemma: Recipe) -> None:
    alone = machine("1xh100", offload="none")
    memory = memory_on(gemma, alone, GEMMA_2_9B)
    # bf16 weights 2, fp32 gradient sums 4, masters 4, RMSprop 4: 14 bytes each; with sums in bf16 it is the 12 of the facts
    assert always(memory) == pytest.approx(14 * 9.2417e9, rel=1e-4)
    assert always(memory) - 2 * 9.2417e9 == pytest.approx(111e9, rel=2e-3)
    assert not memory.fits(80e9)
    changes, other = what_would_fit(gemma, alone, GEMMA_2_9B) or ({}, memory)
    assert changes == {"offload": "optimizer"}
    assert other.part("fp32 masters").device == 0
    assert other.host == pytest.approx(12 * 9.2417e9, rel=1e-4)


def test_nine_billion_parameters_fit_eight_cards_under_zero3(gemma: Recipe) -> None:
    eight = machine("8xa100")
    memory = memory_on(gemma, eight, GEMMA_2_9B)
    assert always(memory) == pytest.approx(14 * 9.2417e9 / 8, rel=1e-4)
    assert memory.fits(device_bytes(eight) or 0)


def test_an_adapter_keeps_optimizer_state_for_its_own_weights_alone(gemma: Recipe) -> None:
    alone = machine("1xh100", offload="none")

    def with_adapter(adapter: LoraAdapter) -> Memory:
        training = gemma.training.model_copy(update={"adapter": adapter})
        return memory_on(gemma.model_copy(update={"training": training}), alone, GEMMA_2_9B)

    lora = with_adapter(LoraAdapter(kind="lora", rank=16, alpha=32))
    # in + out of the seven: q, o 3584 + 4096, k, v 3584 + 2048, gate, up, down 3584 + 14336; x 16 x 42
    thin = 42 * 16 * (2 * 7680 + 2 * 5632 + 3 * 17920)
    assert lora.part("parameters").device == 2 * (9_241_705_984 + thin)
    assert lora.part("optimizer state").device == 4 * thin
    assert lora.fits(80e9)
    qlora = with_adapter(QloraAdapter(kind="qlora", rank=16, alpha=32))
    # half a byte and 4 / 64 of scale for a weight in 4 bits; 2 for embeddings and norms
    small = GEMMA_2_9B.layer_weights
    assert qlora.part("parameters").device == 0.5625 * small + 2 * (9_241_705_984 - small) + 2 * thin


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw", "rmsprop_8bit", "adamw_8bit"])
def test_optimizer_state_is_what_the_optimizers_keep(gemma: Recipe, optimizer: str) -> None:
    import torch

    from sppo.train.optimizers import optimizer_for

    training = gemma.training.model_copy(update={"optimizer": optimizer})
    weight = torch.nn.Parameter(torch.ones(512, 512))
    made = optimizer_for(training, [weight])
    weight.grad = torch.ones_like(weight)
    made.step()
    tensors = [value for value in made.state[weight].values() if isinstance(value, torch.Tensor) and value.numel() > 1]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / weight.numel()
    memory = memory_on(gemma.model_copy(update={"training": training}), machine("1xh100", offload="none"), GEMMA_2_9B)
    assert memory.part("optimizer state").device / 9_241_705_984 == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_activations_are_what_autograd_saves(kind: str, dtype: str) -> None:
    shape, saved = saved_by_layers(kind, dtype, recompute=False)
    assert saved == pytest.approx(activation_bytes(shape, 2 if dtype == "bfloat16" else 4), rel=0.02)


@pytest.mark.parametrize("kind", MODELS)
def test_recomputation_keeps_a_layers_input(kind: str) -> None:
    shape, saved = saved_by_layers(kind, "bfloat16", recompute=True)
    assert saved == pytest.approx(2 * shape.hidden, rel=0.02)


def saved_by_layers(kind: str, dtype: str, recompute: bool) -> tuple[ModelShape, float]:
    """Bytes a token and layer that the forward pass of a real model saves: of three layers, less those of one, halved."""
    shape, three = saved_by(kind, dtype, recompute, layers=3)
    return shape, (three - saved_by(kind, dtype, recompute, layers=1)[1]) / 2


def saved_by(kind: str, dtype: str, recompute: bool, layers: int) -> tuple[ModelShape, float]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values: dict[str, Any] = {"vocab_size": 32, "hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": layers}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": None}
    config = AutoConfig.for_model(kind, **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(getattr(torch, dtype)).train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = 128
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / tokens
    return shape_of(config.to_dict()), saved


def test_the_backward_pass_and_the_step_never_meet() -> None:
    parts = (Part("kept", 10), Part("activations", 5, when="backward"), Part("bucket", 2, when="backward"))
    assert Memory((*parts, Part("root", 6, when="step"))).device == 10 + max(5 + 2, 6)


def test_more_tokens_at_once_cost_activations_and_nothing_that_stays(gemma: Recipe) -> None:
    layout: TrainHardware = machine("8xa100").train
    few, many = (training_memory(GEMMA_2_9B, gemma.training, "bfloat16", layout, "cuda", tokens) for tokens in (4096, 8192))
    assert always(few) == always(many)
    assert many.part("activations").device == 2 * few.part("activations").device


def test_work_and_time_are_worked_out_by_hand(gemma: Recipe) -> None:
    eight = machine("8xa100").model_copy(update={"expected_mfu": 0.5})
    found = plan(gemma, eight, GEMMA_2_9B, Asked(prompts=640, prompt_tokens=100, response_tokens=300))
    assert found.work.tokens == 640 * (100 + 2 * 300)
    assert found.work.schedule.stop == 10  # 640 prompts in batches of 64
    assert found.drawing.responses == 640 * 5
    assert found.drawing.pairs == 640 * 20  # K (K - 1)
    assert found.drawing.cache_per_token == 2 * 42 * 8 * 256 * 2
    # forward: 2 x 8.32e9 x 448,000 tokens, the head 2 x 917.5e6 x 384,000, attention 42 layers of 4 x 4096 x 640 prompts of
    # 100 x 101 / 2 + 2 (100 x 300 + 300 x 301 / 2) = 155,350 pairs
    forward = 2 * 8.32365e9 * 448_000 + 2 * 917.504e6 * 384_000 + 42 * 4 * 4096 * 640 * 155_350
    assert found.training_flops == pytest.approx(3 * forward, rel=1e-4)
    assert found.reference_flops == pytest.approx(forward, rel=1e-4)
    assert found.seconds == pytest.approx(4 * forward / (8 * 312e12 * 0.5), rel=1e-4)
    assert found.assumptions == ("both extremes of 5 responses are selected for each prompt",)


def test_what_is_not_said_is_assumed_by_name(gemma: Recipe) -> None:
    found = plan(gemma, machine("8xa100"), GEMMA_2_9B, Asked(response_tokens=2000))
    assert found.work.lengths == (160, (864, 864))
    assert "20,000 prompts, as in an iteration of the published runs: --prompts N" in found.assumptions
    assert "responses are cut to 864 tokens by training.max_tokens 1024" in found.assumptions
    assert any("useful MFU 40 %" in assumption for assumption in found.assumptions)


def test_ones_own_prompts_are_asked_for(gemma: Recipe) -> None:
    source = OwnPrompts(kind="own", dataset="mine.jsonl", test_share=0.1)
    own = gemma.model_copy(update={"prompts": gemma.prompts.model_copy(update={"source": source})})
    with pytest.raises(RecipeError, match=r"how many prompts of mine.jsonl .* expected --prompts N"):
        plan(own, machine("8xa100"), GEMMA_2_9B, Asked())


def test_the_tiny_worlds_policy_is_known_without_making_it(tmp_path: Path) -> None:
    from sppo.world import policy

    tiny = load_recipe("tiny", RECIPES)
    shape = policy_shape(tiny, None)
    assert shape.parameters == sum(
        parameter.numel() for parameter in policy._model(policy.build_tokenizer(), seed=1).parameters()
    )
    assert plan(tiny, machine("cpu"), shape, Asked(), peak=5e10).work.prompts == 256


def test_a_policys_folder_or_a_given_file_says_its_shape(tmp_path: Path, gemma: Recipe) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, '
        '"num_hidden_layers": 1, "num_attention_heads": 2}'
    )
    folder = gemma.policy.model_copy(update={"source": FolderModel(kind="folder", path=str(tmp_path))})
    assert policy_shape(gemma.model_copy(update={"policy": folder}), None).hidden == 8
    assert policy_shape(gemma, config).hidden == 8


def test_without_a_hub_the_config_is_asked_for(gemma: Recipe) -> None:
    source = HubModel(kind="hub", model="nobody/nothing")  # HF_HUB_OFFLINE is set for all tests
    hub = gemma.model_copy(update={"policy": gemma.policy.model_copy(update={"source": source})})
    with pytest.raises(PolicyError, match=r"cannot read the config.json of nobody/nothing: .*--config path/to/config.json"):
        policy_shape(hub, None)


def test_the_command_answers_at_once_and_loads_neither_prefect_nor_an_engine() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['sppo', 'plan', 'tiny']\n"
        "from flows.command_line import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "loaded = {'prefect', 'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "one iteration of tiny on cpu" in done.stdout
    assert "optimizer state" in done.stdout
    assert "fits " in done.stdout
    assert "measured here" in done.stdout


def test_the_command_says_what_would_fit_and_fails(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, '
        '"num_hidden_layers": 32, "num_attention_heads": 32}'
    )
    text = (HARDWARE / "1xh100.yaml").read_text().replace("offload: optimizer_and_parameters", "offload: none")
    (tmp_path / "plain.yaml").write_text(text)
    command = [sys.executable, "-m", "flows.command_line", "plan", "gemma-2-9b-it", "--config", str(config)]
    command += ["--hardware", str(tmp_path / "plain.yaml"), "--prompts", "64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stdout
    assert "it would with train: {offload: optimizer}" in done.stdout


def test_a_cpus_ranks_share_its_memory() -> None:
    assert device_bytes(machine("cpu")) == 8 * GIB / 2
