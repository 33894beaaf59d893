"""What training is measured on: prompts with K responses of random tokens and realistic lengths, and Llamas of random weights.

Read by every side, so also in a rival's own environment: nothing of the project is imported here. T tokens, K responses.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"
ANSWERERS = (
    "SPPO-Gemma-2-9B-It-PairRM",
    "SPPO-Llama-3-Instruct-8B-PairRM",
    "SPPO-Mistral7B-PairRM",
    "Snorkel-Mistral-PairRM-DPO",
    "Mistral-7B-Instruct-v0.2",
)
"""Columns of that file: five models' answers."""
CHARACTERS = 4.5
"""Of English a token."""
TEMPLATE_TOKENS = 12
"""Around a prompt, for the turns' headers."""
MAX_PROMPT, MAX_TOKENS = 512, 1024
"""The recipes': of a prompt, and of a prompt with one response."""
PAD, BOS, EOS = 0, 1, 2
PAIRS = 8
"""Prompts a step."""


@dataclass(frozen=True)
class Asked:
    """A prompt and its responses, the most preferred first; every response ends with EOS."""

    prompt: list[int]
    responses: list[list[int]]
    wins: list[float]
    """(K,), P(y > pi_t | x): 1 and 0 for a pair, as TRL's sppo_hard has it; evenly spread for more."""

    @property
    def tokens(self) -> int:
        """The prompt counted once."""
        return len(self.prompt) + sum(len(response) for response in self.responses)


Steps = list[list[Asked]]
"""Optimizer steps, each a batch of prompts."""


@dataclass(frozen=True)
class Shape:
    """A size of Llama, embeddings tied."""

    name: str
    layers: int
    width: int
    inner: int
    vocabulary: int = 10_240

    @property
    def heads(self) -> int:
        """Of 64."""
        return self.width // 64

    def config(self) -> Any:
        """LlamaConfig."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


TINY = Shape("tiny", 2, 64, 176, 512)
SMALL = Shape("small", 4, 256, 704)
MID = Shape("mid", 8, 512, 1408)


def log_uniform(draw: random.Random, least: int, most: int) -> int:
    """A whole number whose logarithm is uniform."""
    return round(math.exp(draw.uniform(math.log(least), math.log(most))))


def mixed_lengths(prompts: int, responses: int, longest: int = 500, seed: int = 0) -> list[tuple[int, list[int]]]:
    """Prompts of 30 to 500 tokens, responses of 50 to 500, both log-uniform; `longest` cuts both ranges."""
    draw = random.Random(seed)
    low = (min(30, longest // 4), min(50, longest // 2))
    return [
        (log_uniform(draw, low[0], longest), [log_uniform(draw, low[1], longest) for _ in range(responses)])
        for _ in range(prompts)
    ]


def real_lengths(prompts: int, responses: int, path: Path = REAL, seed: int = 0) -> list[tuple[int, list[int]]]:
    """AlpacaEval's instructions with five models' answers, characters over 4.5, cut as the recipes cut; a fixed sample."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["instruction", *ANSWERERS])
    rows = random.Random(seed).sample(range(table.num_rows), prompts)
    found = []
    for row in rows:
        asked = min(MAX_PROMPT, TEMPLATE_TOKENS + round(len(table["instruction"][row].as_py()) / CHARACTERS))
        answers = [round(len(table[name][row].as_py()) / CHARACTERS) for name in ANSWERERS[:responses]]
        found.append((asked, [max(2, min(MAX_TOKENS - asked, answer)) for answer in answers]))
    return found


def make_steps(lengths: Sequence[tuple[int, list[int]]], vocabulary: int, each: int = PAIRS, seed: int = 1) -> Steps:
    """Batches of `each` prompts with random token ids of the given lengths."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(length)]

    asked = [
        Asked(
            [BOS, *text(prompt - 1)],
            [[*text(length - 1), EOS] for length in responses],
            [1 - k / (len(responses) - 1) for k in range(len(responses))],
        )
        for prompt, responses in lengths
    ]
    return [asked[start : start + each] for start in range(0, len(asked), each)]


def write_steps(steps: Steps, path: Path) -> Path:
    """For the sides' processes."""
    path.write_text(json.dumps([[asdict(asked) for asked in step] for step in steps]), encoding="utf-8")
    return path


def read_steps(path: Path) -> Steps:
    """What write_steps wrote."""
    return [[Asked(**asked) for asked in step] for step in json.loads(path.read_text(encoding="utf-8"))]


def make_policy(folder: Path, shape: Shape) -> int:
    """Write a Llama of random weights with a tokenizer; its number of parameters."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(shape.config())
    model.save_pretrained(folder)
    save_tokenizer(folder, shape.vocabulary)
    return int(model.num_parameters())


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """One token a word, `t17` for id 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {f"t{number}": number for number in range(3, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)


def as_words(ids: Sequence[int]) -> str:
    """The text that this tokenizer turns into these ids."""
    specials = {PAD: "<pad>", BOS: "<s>", EOS: "</s>"}
    return " ".join(specials.get(number, f"t{number}") for number in ids)
