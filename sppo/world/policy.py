"""The tiny world's base policy: a Llama of 1.1 M parameters fitted on mediocre answers, in a Hugging Face folder.

About half of each answer's parts are good, so good answers are sampled often enough to be preferred, and there is room to
learn. The instructions that runs draw from are not among its lessons.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.fingerprint import seed_of
from sppo.progress import Progress, Report, silent
from sppo.world.fitting import batches, draw_weights, fit_apart, warm_linear
from sppo.world.language import answer, lesson_instructions
from sppo.world.lexicon import spellings

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SKILL = 0.5
"""How good the answers are that it learns from."""
STEPS = 750
BATCH = 32
"""Lessons a step; none comes twice."""
LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 30
MAX_GRAD_NORM = 1.0
DEVIATION = 0.06
"""Of the first weights."""

PAD, BEGIN, USER, ASSISTANT, END = SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")
"""`<|end|>` closes every turn, so it is the EOS; padding has a token of its own."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('this policy has no system role') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Lesson:
    """One instruction and one answer, as the policy reads them."""

    token_ids: list[int]
    prompt_tokens: int


def fit(folder: Path, seed: int, report: Report = silent, threads: int = 1, steps: int = STEPS) -> dict[str, float]:
    """pi_0: make the base policy in a folder. Returns its figures: `loss` (nats a token, last tenth) and `parameters`.

    The same seed and number of threads on the same machine give the same bytes."""
    return fit_apart("policy", folder, seed, steps, threads, report)


def make(folder: Path, seed: int, steps: int, report: Report) -> dict[str, float]:
    """`fit`, in this process."""
    tokenizer = build_tokenizer()
    model = _model(tokenizer, seed)
    loss = _train(model, _lessons(tokenizer, seed, steps * BATCH), seed, steps, report)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"loss": loss, "parameters": float(model.num_parameters())}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Bytes, and a token for each word of the language: any text round-trips, and the language's own is short."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(_tokens())}
    # without merges, a word that is no token falls apart into its bytes
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _tokens() -> list[str]:
    """Control tokens, bytes, and the language's words, each once."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [piece for spelling in spellings() for piece, _ in split.pre_tokenize_str(spelling)]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]))


def shape_values() -> dict[str, Any]:
    """What its config.json says of its shape; known without making it."""
    return {"model_type": "llama", "vocab_size": len(_tokens()), **SHAPE}


def _model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    draw_weights(model, seed_of(seed, "world policy weights"), DEVIATION)
    return model


def _lessons(tokenizer: "PreTrainedTokenizerFast", seed: int, count: int) -> list[Lesson]:
    draw = random.Random(seed_of(seed, "world policy lessons"))
    known = lesson_instructions()
    lessons = []
    for _ in range(count):
        instruction = draw.choice(known)
        # the chat template, spelled out: the markers never come from the text
        prompt = f"{BEGIN}{USER}{instruction.text}{END}{ASSISTANT}"
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        answer_ids = tokenizer.encode(answer(instruction, SKILL, draw) + END, add_special_tokens=False)
        lessons.append(Lesson(prompt_ids + answer_ids, len(prompt_ids)))
    return lessons


def _train(model: "LlamaForCausalLM", lessons: list[Lesson], seed: int, steps: int, report: Report) -> float:
    import torch

    draw = random.Random(seed_of(seed, "world policy batches"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    model.train()
    recent: list[float] = []
    for step, batch in enumerate(batches([len(lesson.token_ids) for lesson in lessons], BATCH, draw)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_linear(step, steps, WARMUP_STEPS)
        loss = _loss(model, [lessons[position] for position in batch])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent, loss.item()][-max(1, steps // 10) :]
        note = f"loss {sum(recent) / len(recent):.3f}"
        report(Progress(stage="policy", done=step + 1, total=steps, unit="steps", note=note))
    return sum(recent) / len(recent)


def _loss(model: "LlamaForCausalLM", batch: list[Lesson]) -> "torch.Tensor":
    """Cross-entropy of the answers' tokens, nats a token. B lessons, T tokens of the longest, V vocabulary."""
    import torch

    longest = max(len(lesson.token_ids) for lesson in batch)
    pad: Any = model.config.pad_token_id
    ids = torch.tensor([lesson.token_ids + [pad] * (longest - len(lesson.token_ids)) for lesson in batch])  # (B, T)
    places = torch.arange(longest)  # (T,)
    first = torch.tensor([lesson.prompt_tokens for lesson in batch])[:, None]  # (B, 1)
    ends = torch.tensor([len(lesson.token_ids) for lesson in batch])[:, None]  # (B, 1)
    answered = ((places >= first) & (places < ends))[:, 1:]  # (B, T - 1)
    # padding comes last, and no token looks ahead: it needs no mask
    hidden = model.model(ids).last_hidden_state[:, :-1][answered]  # (answer tokens, hidden)
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][answered])
