"""The tiny world's judge: PairRM's network over a DeBERTa of two layers, fitted on preferences of the language.

Preferences alone teach so small an encoder only slowly to compare the words of an answer with those of the question. So for the
time of the fit two more readings of the same states are asked for, and thrown away after: which words of an answer stand in the
question, and which parts of an answer are good. The instructions that runs draw from are not among its lessons.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.fingerprint import seed_of
from sppo.judges.encoder import encode
from sppo.judges.pairrm import PairRM, PairRMConfig, save_native, to_tensors
from sppo.judges.segments import JudgeTokenizer, PairEncoding, SegmentLimits, join_pair, pad_pairs
from sppo.progress import Progress, Report, silent
from sppo.world.fitting import batches, draw_weights, fit_apart, warm_linear
from sppo.world.language import (
    Instruction,
    Parts,
    answer,
    garble,
    lesson_instructions,
    logit_between,
    parts_of,
    run_instructions,
)
from sppo.world.lexicon import vocabulary

if TYPE_CHECKING:
    import torch

STEPS = 1150
BATCH = 48
"""Pairs a step; none comes twice."""
HELD_OUT = 1536
"""Pairs, to instructions of runs, on which accuracy is measured."""
LOWEST_SKILL = 0.3
"""Of the answers it learns from; the highest is 1. Two answers of a pair are of equal skill, as those of one policy are."""
GARBLED = 0.1
"""Share of answers with a word out of place."""
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 100
MAX_GRAD_NORM = 1.0
DEVIATION = 0.1
"""Of the first weights."""
LIMITS = SegmentLimits(source=64, candidate=64)

SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "relative_attention": True,
    "position_buckets": 32,
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
"""DeBERTa-v3's, as PairRM has it, but for the sizes."""


@dataclass(frozen=True)
class Lesson:
    """One question to the judge, and what is known of it."""

    encoding: PairEncoding
    logit: float
    """The rule's log-odds that the first answer is preferred."""
    parts: tuple[Parts, Parts]


def fit(folder: Path, seed: int, report: Report = silent, threads: int = 1, steps: int = STEPS) -> dict[str, float]:
    """Make the judge in a folder, in PairRM's native format. Returns its figures: `accuracy`, `loss` and `parameters`.

    accuracy is the share of held-out pairs on which the judge, asked in one order, agrees with the rule; pairs that the rule
    does not tell apart are left out. The same seed and number of threads on the same machine give the same bytes."""
    return fit_apart("judge", folder, seed, steps, threads, report)


def make(folder: Path, seed: int, steps: int, report: Report) -> dict[str, float]:
    """`fit`, in this process."""
    with tempfile.TemporaryDirectory(prefix="sppo-world-") as name:
        path = Path(name) / "tokenizer.json"
        write_tokenizer(path)
        tokenizer = JudgeTokenizer(path)
        network = PairRM(
            PairRMConfig({**SHAPE, "vocab_size": tokenizer.size, "pad_token_id": tokenizer.control.pad}, dropout=0.0)
        )
        draw_weights(network.module, seed_of(seed, "world judge weights"), DEVIATION)
        draw = random.Random(seed_of(seed, "world judge lessons"))
        lessons = _lessons(tokenizer, lesson_instructions(), steps * BATCH, draw)
        loss = _train(network, tokenizer, lessons, seed, steps, report)
        held_out = _lessons(tokenizer, run_instructions(), HELD_OUT, random.Random(seed_of(seed, "world judge held out")))
        save_native(network, path, LIMITS, folder)
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    return {"accuracy": _accuracy(network, tokenizer, held_out), "loss": loss, "parameters": float(parameters)}


def write_tokenizer(path: Path) -> None:
    """A DeBERTa-v3 tokenizer's layout (Unigram over words that keep their space) with the language's words for pieces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pieces = [(token, 0.0) for token in special]
    pieces += [(f"▁{word}", -8.0) for word in sorted(vocabulary())]
    pieces += [(mark, -12.0) for mark in ".,!?▁"]
    pieces += [(letter, -20.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index("[UNK]")))
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), blanks, normalizers.NFC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([*special, "[MASK]"])
    tokenizer.save(str(path))


def _lessons(tokenizer: JudgeTokenizer, known: Sequence[Instruction], count: int, draw: random.Random) -> list[Lesson]:
    lessons: list[Lesson] = []
    while len(lessons) < count:
        instruction = draw.choice(known)
        skill = draw.uniform(LOWEST_SKILL, 1.0)
        texts = [answer(instruction, skill, draw) for _ in range(4)]
        texts = [garble(text, draw) if draw.random() < GARBLED else text for text in texts]
        source, *ids = tokenizer.encode_batch([instruction.text, *texts])
        parts = [parts_of(instruction, text) for text in texts]
        for one, two in ((0, 1), (2, 3), (1, 2), (3, 0)):
            encoding = join_pair(tokenizer.control, LIMITS, source, ids[one], ids[two])
            lessons.append(Lesson(encoding, logit_between(parts[one], parts[two]), (parts[one], parts[two])))
    return lessons[:count]


def _train(network: PairRM, tokenizer: JudgeTokenizer, lessons: list[Lesson], seed: int, steps: int, report: Report) -> float:
    import torch

    draw = random.Random(seed_of(seed, "world judge batches"))
    width = int(SHAPE["hidden_size"])
    probes = torch.nn.ModuleDict(
        {"copied": torch.nn.Linear(width, 1), "parts": torch.nn.Linear(width, len(_marks(lessons[0].parts[0])))}
    )
    draw_weights(probes, seed_of(seed, "world judge probes"), DEVIATION)
    weights = [*network.module.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    network.module.train()
    recent: list[float] = []
    for step, batch in enumerate(batches([len(lesson.encoding.ids) for lesson in lessons], BATCH, draw)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_linear(step, steps, WARMUP_STEPS)
        loss, extra = _losses(network, probes, tokenizer, [lessons[position] for position in batch])
        (loss + extra).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent, loss.item()][-max(1, steps // 10) :]
        note = f"loss {sum(recent) / len(recent):.3f}"
        report(Progress(stage="judge", done=step + 1, total=steps, unit="steps", note=note))
    network.module.eval()
    return sum(recent) / len(recent)


def _losses(
    network: PairRM, probes: Any, tokenizer: JudgeTokenizer, batch: list[Lesson]
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Cross-entropy with the rule's preferences, and of the two further readings. B pairs, T tokens, H width, M marks."""
    import torch

    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    ids, mask, *places = to_tensors(pad_pairs([lesson.encoding for lesson in batch], tokenizer.control.pad))
    states = encode(network.encoder, network.shape, ids, mask)  # (B, T, H)
    rows = torch.arange(len(batch))
    source, first, second = (states[rows, place] for place in places)  # (B, H) each
    head = network.module["head_layer"]
    margins = (head(torch.cat([source, first], dim=-1)) - head(torch.cat([source, second], dim=-1)))[:, 0]  # (B,)
    preferred = torch.tensor([lesson.logit for lesson in batch]).sigmoid()  # (B,)
    marks = torch.tensor([[_marks(one) for one in lesson.parts] for lesson in batch])  # (B, 2, M)
    parts = entropy(probes["parts"](first), marks[:, 0]) + entropy(probes["parts"](second), marks[:, 1])
    after_source = torch.arange(ids.shape[1]) >= places[1][:, None] - 1  # (B, T)
    copied = ((ids[:, :, None] == ids[:, None, :]) & ~after_source[:, None, :]).any(dim=2)  # (B, T)
    words = after_source & (mask == 1)  # (B, T)
    return entropy(margins, preferred), parts + entropy(probes["copied"](states)[..., 0][words], copied[words].float())


def _marks(parts: Parts) -> list[float]:
    marks = (parts.noun, parts.adjective, parts.predicate, parts.off_task, parts.detail, parts.ending, parts.stutter)
    return [*map(float, marks), float(parts.style == 1), float(parts.style == 2)]


def _accuracy(network: PairRM, tokenizer: JudgeTokenizer, lessons: list[Lesson]) -> float:
    """Share of the pairs that the rule tells apart on which the judge's logit has the rule's sign."""
    right: list[bool] = []
    for start in range(0, len(lessons), BATCH):
        batch = lessons[start : start + BATCH]
        logits = network.logits(pad_pairs([lesson.encoding for lesson in batch], tokenizer.control.pad)).tolist()
        right += [(logit > 0) == (lesson.logit > 0) for logit, lesson in zip(logits, batch, strict=True) if lesson.logit]
    return sum(right) / len(right)
