"""Fixtures: stores, and small random policies of real architectures with a chat template of their own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in these tests may reach for a hub

from sppo.hardware import Hardware, load_hardware
from sppo.recipe import Recipe, load_recipe
from sppo.store import Store

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<turn>' + message['role'] + '\n' + message['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "scratch")


@pytest.fixture
def tiny() -> Recipe:
    return load_recipe("tiny", RECIPES)


@pytest.fixture
def cpu() -> Hardware:
    return load_hardware("cpu", HARDWARE)


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random policy of about 0.2 M parameters: `llama`, `mistral` (window 16) or
    `gemma2`, with a byte-level tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"policy-{kind}")
            _write_policy(kind, made[kind])
        return made[kind]

    return make


def _write_policy(kind: str, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        PreTrainedTokenizerFast,
    )

    specials = ["<bos>", "<eos>", "<turn>", "</turn>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="</turn>",
        additional_special_tokens=["<turn>", "<eos>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    model: torch.nn.Module
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**{**shape, "pad_token_id": 1}, sliding_window=16, query_pre_attn_scalar=32))
    model.save_pretrained(folder)  # type: ignore[operator]
