"""What judging is measured on: real questions, and PairRMs of random weights. For the benchmarks and the parity tests.

The weights are drawn so that a network tells answers apart without being chaotic: attention looks at some tokens more than at
others, each layer changes its states moderately, and logits are of order 1. N prompts, K answers.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sppo.judges import Match
from sppo.judges.network import NetworkJudge
from sppo.judges.pairrm import PairRM, PairRMConfig, load_pairrm, save_native
from sppo.judges.segments import JudgeTokenizer, PairEncoding, SegmentLimits, join_pair
from sppo.progress import silent

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"
ANSWERERS = (
    "SPPO-Gemma-2-9B-It-PairRM",
    "SPPO-Llama-3-Instruct-8B-PairRM",
    "SPPO-Mistral7B-PairRM",
    "Snorkel-Mistral-PairRM-DPO",
    "Mistral-7B-Instruct-v0.2",
)
"""Columns of that file: five models' answers."""
LIMITS = SegmentLimits(source=1224, candidate=412)
"""PairRM's own."""
SHARP = ("query_proj", "key_proj")
"""Larger weights than the others: with flat attention, answers of hundreds of tokens would all look alike."""
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
POSITIONS = 256
"""Distances told apart in each direction."""
COMMON = {
    "relative_attention": True,
    "position_buckets": POSITIONS,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


@dataclass(frozen=True)
class Asked:
    """A prompt and K answers."""

    prompt: str
    answers: list[str]

    def match(self, prompt_id: str = "") -> Match:
        """All ordered pairs."""
        count = range(len(self.answers))
        pairs = [(i, j) for i in count for j in count if i != j]
        return Match(prompt_id, [{"role": "user", "content": self.prompt}], list(self.answers), pairs)


@dataclass(frozen=True)
class Shape:
    """A size of network."""

    name: str
    layers: int
    width: int
    heads: int
    inner: int

    def fields(self, vocabulary: int) -> dict[str, Any]:
        """Fields of DebertaV2Config."""
        return {
            **COMMON,
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
        }


TINY = Shape("tiny", 2, 32, 2, 64)
SMALL = Shape("small", 2, 96, 3, 256)
"""The tiny world's judge."""
MID = Shape("mid", 6, 384, 6, 1536)
LARGE = Shape("large", 24, 1024, 16, 4096)
"""PairRM's."""


def real_questions(path: Path = REAL) -> list[Asked]:
    """The 805 prompts of AlpacaEval with five models' answers."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["instruction", *ANSWERERS])
    columns = [table[name].to_pylist() for name in ANSWERERS]
    return [Asked(prompt, list(answers)) for prompt, *answers in zip(table["instruction"].to_pylist(), *columns, strict=True)]


def made_questions(count: int = 200, seed: int = 0) -> list[Asked]:
    """Prompts of 5 to 400 made words and five answers of 20 to 600, drawn log-uniformly."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 8))) for _ in range(3000)]

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=round(math.exp(draw.uniform(math.log(least), math.log(most))))))

    return [Asked(text(5, 400), [text(20, 600) for _ in ANSWERERS]) for _ in range(count)]


def train_tokenizer(asked: Sequence[Asked], vocabulary: int) -> Any:
    """A `tokenizers.Tokenizer` like DeBERTa-v3's: Unigram pieces of these texts, and its rules for text (nmt_nfkc).

    Where sentencepiece is not installed, which knows those rules, NFKC stands in."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    charsmap = _nmt_nfkc()
    rules = normalizers.NFKC() if charsmap is None else normalizers.Precompiled(charsmap)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), rules, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIALS), unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator([text for one in asked for text in (one.prompt, *one.answers)], trainer)
    tokenizer.add_special_tokens([*SPECIALS, "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _nmt_nfkc() -> bytes | None:
    """Sentencepiece's table of that name, which it writes into every model that it trains."""
    if find_spec("sentencepiece") is None or find_spec("google.protobuf") is None:
        return None
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h"] * 20),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    found: bytes = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap
    return found


def make_judge(
    folder: Path, shape: Shape, tokenizer: Any, asked: Sequence[Asked], limits: SegmentLimits = LIMITS, seed: int = 0
) -> None:
    """Writes a judge folder with random weights; the head is scaled so that the logits of `asked` have a deviation of 1."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "trained.json"))
    network = PairRM(PairRMConfig(shape.fields(tokenizer.get_vocab_size() + 4)))  # and the prefixes
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in network.module.named_parameters():
        if "LayerNorm" in name:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1, generator=draw)
        else:
            gain = 2.0 if name.split(".")[-2] in SHARP else 0.5
            deviation = 0.1 if parameter.ndim < 2 else gain / math.sqrt(parameter.shape[1])
            torch.nn.init.normal_(parameter, std=deviation, generator=draw)
    words = network.encoder["embeddings"]["word_embeddings"].weight
    with torch.no_grad():
        words[-2] = words[-3]  # <|candidate2|> as <|candidate1|>, or either place would win whatever stands there
    save_native(network, folder / "trained.json", limits, folder)
    judge = NetworkJudge(*load_pairrm(folder), limits, tokens_per_batch=1024)
    found = judge.judge([one.match() for one in asked], silent)
    with torch.no_grad():
        network.module["head_layer"][-1].weight /= float(np.concatenate(found).std())
    save_native(network, folder / "trained.json", limits, folder)
    (folder / "trained.json").unlink()


def encode_questions(tokenizer: JudgeTokenizer, limits: SegmentLimits, asked: Sequence[Asked]) -> list[PairEncoding]:
    """Every ordered pair, in the order of `Asked.match`."""
    found = []
    for one in asked:
        source, *answers = tokenizer.encode_batch([one.prompt, *one.answers])
        found += [join_pair(tokenizer.control, limits, source, answers[i], answers[j]) for i, j in one.match().pairs]
    return found


def question_lengths(tokenizer: JudgeTokenizer, limits: SegmentLimits, asked: Sequence[Asked]) -> list[int]:
    """Tokens of every ordered pair, in the order of `Asked.match`."""
    return [len(encoding.ids) for encoding in encode_questions(tokenizer, limits, asked)]


def useful_flops(shape: Shape, tokens: int) -> float:
    """Floating-point operations that the verdict on a question of T tokens needs: no padding, a last layer of three tokens.

    A layer has 2 T H (4 H + 2 I) in products with weights, 4 T T H in scores and mixing, 4 T R H for R relative positions. Of
    the last, the keys and values of T tokens are needed and three tokens' of all else."""
    width, inner = shape.width, shape.inner
    positions = min(2 * POSITIONS, 2 * tokens - 1)
    layer = 2 * tokens * width * (4 * width + 2 * inner) + 4 * tokens**2 * width + 4 * tokens * positions * width
    rows = 3
    last = 4 * tokens * width**2 + 2 * rows * width * (2 * width + 2 * inner) + 4 * rows * tokens * width
    return (shape.layers - 1) * layer + last + 2 * rows * (positions + tokens) * width
