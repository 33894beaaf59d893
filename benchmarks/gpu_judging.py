"""Judging on one GPU: our PairRM against transformers' DebertaV2Model, padded batches and one pair at a time, fp16.

    python benchmarks/gpu_judging.py [--quick] [--data FILE.parquet] [--tokens-per-batch N]

A PairRM-sized network of random weights (its vocabulary is smaller, which is looked up and never multiplied), under ten minutes
with its compilation. Needs torch, transformers and this project. First the real mix of lengths, then questions of one length
each; the card's dense rate is that of one large fp16 product in the same run. `--device cpu --tiny` goes the same way in
seconds. Last line: one JSON object.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from benchmarks.material.judging import (
    LARGE,
    LIMITS,
    REAL,
    TINY,
    Asked,
    Shape,
    encode_questions,
    made_questions,
    make_judge,
    real_questions,
    train_tokenizer,
    useful_flops,
)
from sppo.judges.folder import WEIGHTS, read_folder
from sppo.judges.network import NetworkJudge
from sppo.judges.segments import PairEncoding, fill_rows
from sppo.progress import silent
from sppo.recipe import FolderModel, PairRMJudge

Encodings = Sequence[PairEncoding]
Judging = Callable[[Encodings], np.ndarray]
"""Logits, (P,), in the order of the questions."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shape: Shape
    pairs: int
    """Of the real mix, for our side; the batched loop takes a quarter of them and one at a time a twentieth."""
    lengths: tuple[int, ...]
    product: int
    """Width of the large product."""


FULL = Size(LARGE, 2400, (128, 256, 512, 1024, 2048), 8192)
QUICK = Size(LARGE, 400, (256, 1024), 8192)
SMALLEST = Size(TINY, 40, (32, 64), 256)


@dataclass(frozen=True)
class Sides:
    """The three ways, and how they are told apart."""

    ours: Judging
    batched: Judging
    single: Judging
    exact: Judging
    """transformers' in fp32."""


def main() -> None:
    """Measure and print."""
    options = read_options()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_judging: no CUDA device is here, nothing measured (`--device cpu --tiny` tries the code)")
        print(json.dumps({}))
        return
    size = SMALLEST if options.tiny else QUICK if options.quick else FULL
    real = options.data.is_file()
    asked = real_questions(options.data) if real else made_questions()
    if options.tiny:
        asked = [Asked(one.prompt[:300], [text[:300] for text in one.answers]) for one in asked[:60]]
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"gpu_judging: {card}, torch {torch.__version__}; {'real' if real else 'made, log-uniform'} prompts and answers")
    with tempfile.TemporaryDirectory() as name:
        tokenizer = train_tokenizer(asked if options.tiny else asked[::5], 16_000)
        make_judge(
            Path(name),
            size.shape,
            tokenizer,
            [Asked(one.prompt[:99], [text[:99] for text in one.answers]) for one in asked[:2]],
        )
        judge, sides = make_sides(Path(name), options.device, options.tokens_per_batch)
        line = measure(judge, sides, size, asked, options.device)
    print(json.dumps(line))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixth of the pairs, two lengths")
    parser.add_argument("--data", type=Path, default=REAL, help="prompts and answers, as in alpaca_eval_responses.parquet")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a network and numbers for trying the code")
    parser.add_argument("--tokens-per-batch", type=int, default=65536)
    return parser.parse_args()


def make_sides(folder: Path, device: Any, tokens_per_batch: int) -> tuple[NetworkJudge, Sides]:
    """Our judge, loaded, and every way to score encodings."""
    import torch

    limits = {"max_source_tokens": LIMITS.source, "max_candidate_tokens": LIMITS.candidate}
    recipe = PairRMJudge(kind="pairrm", source=FolderModel(kind="folder", path=str(folder)), **limits)
    judge = NetworkJudge.load(recipe, folder, device, tokens_per_batch)

    def ours(encodings: Encodings) -> np.ndarray:
        logits = np.zeros(len(encodings), dtype=np.float32)  # (P,)
        for rows in fill_rows([len(one.ids) for one in encodings], tokens_per_batch):
            logits[rows] = judge.logits([encodings[row] for row in rows]).cpu().numpy()
        return logits

    half = torch.float16 if device == "cuda" else torch.float32
    plain, exact = PaddedPairRM(folder, device, half), PaddedPairRM(folder, device, torch.float32)
    # its scores are (B, A, T, T), several times over: past 16,384 tokens a batch gains nothing
    return judge, Sides(
        ours,
        lambda encodings: plain.judge(encodings, min(tokens_per_batch, 16_384)),
        lambda encodings: plain.judge(encodings, 1),
        lambda encodings: exact.judge(encodings, 8192),
    )


class PaddedPairRM:
    """PairRM as one would write it with transformers: DebertaV2Model over padded batches, sorted by length."""

    def __init__(self, folder: Path, device: str, dtype: Any) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import DebertaV2Config, DebertaV2Model

        described = read_folder(folder)
        state = load_file(folder / WEIGHTS)
        width = described.encoder["hidden_size"]
        self.encoder = DebertaV2Model(DebertaV2Config(**described.encoder))
        self.head = torch.nn.Sequential(
            torch.nn.Dropout(0.0),
            torch.nn.Linear(2 * width, width),
            torch.nn.Tanh(),
            torch.nn.Dropout(0.0),
            torch.nn.Linear(width, 1),
        )
        for module, prefix in ((self.encoder, "pretrained_model."), (self.head, "head_layer.")):
            module.load_state_dict({name.removeprefix(prefix): part for name, part in state.items() if name.startswith(prefix)})
            module.to(device, dtype).eval()
        self.device = device

    def judge(self, encodings: Encodings, tokens_per_batch: int) -> np.ndarray:
        """Logits, (P,)."""
        import torch

        order = sorted(range(len(encodings)), key=lambda place: -len(encodings[place].ids))
        logits = np.zeros(len(encodings), dtype=np.float32)  # (P,)
        while order:
            count = max(1, tokens_per_batch // len(encodings[order[0]].ids))
            rows, order = order[:count], order[count:]
            with torch.inference_mode():
                logits[rows] = self._batch([encodings[row] for row in rows]).float().cpu().numpy()
        return logits

    def _batch(self, encodings: Encodings) -> Any:
        import torch

        lists = [torch.tensor(one.ids) for one in encodings]
        ids = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True).to(self.device)  # (B, T)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in lists], batch_first=True).to(self.device)
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, H)
        places = torch.tensor([[one.source, one.candidate1, one.candidate2] for one in encodings], device=self.device)  # (B, 3)
        source, first, second = states[torch.arange(len(encodings), device=self.device)[:, None], places].unbind(
            1
        )  # (B, H) each
        return (self.head(torch.cat([source, first], -1)) - self.head(torch.cat([source, second], -1)))[:, 0]  # (B,)


def measure(judge: NetworkJudge, sides: Sides, size: Size, asked: Sequence[Asked], device: str) -> dict[str, float]:
    """Prints the tables; result: the JSON line's numbers."""
    dense = dense_rate(size.product, device)
    print(f"dense rate: {dense / 1e12:.1f} TFLOP/s, a product of {size.product} x {size.product} x {size.product}")
    draw = random.Random(0)
    mixed = draw.sample(list(asked), min(len(asked), -(-size.pairs // 20)))
    encodings = encode_questions(judge.tokenizer, LIMITS, mixed)[: size.pairs]
    shuffled = draw.sample(encodings, len(encodings))
    few = shuffled[: max(2, size.pairs // 4)], shuffled[: max(2, size.pairs // 20)]
    lengths = [len(one.ids) for one in encodings]
    print(
        f"mix: {len(encodings)} pairs of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f} "
        f"({len(few[0])} of them for the batched loop, {len(few[1])} one at a time)"
    )
    began = time.perf_counter()
    sides.ours(encodings)
    print(f"first pass, with whatever is compiled: {time.perf_counter() - began:.1f} s")
    line = {"dense_tflops": round(dense / 1e12, 2)} | compare(sides, size.shape, "mix", (encodings, *few), dense)
    matches = [one.match(str(number)) for number, one in enumerate(mixed)]
    judge.judge(matches[:2], silent)
    whole, seconds = timed(lambda: judge.judge(matches, silent))
    print(f"from texts, as a stage judges: {sum(map(len, whole)) / seconds:.1f} pairs/s")
    line["pairs_per_s_from_texts"] = round(sum(map(len, whole)) / seconds, 2)
    for tokens in size.lengths:
        made = [stretched(one, tokens) for one in encodings[: min(len(encodings), max(8, 400_000 // tokens))]]
        sides.ours(made)
        line |= compare(
            sides, size.shape, str(tokens), (made, made[: max(2, len(made) // 4)], made[: max(2, len(made) // 20)]), dense
        )
    return line | agreement(sides, encodings[: max(20, size.pairs // 10)])


def compare(
    sides: Sides, shape: Shape, name: str, asked: tuple[Encodings, Encodings, Encodings], dense: float
) -> dict[str, float]:
    """A row for each side: pairs a second and share of the dense rate; each side has warmed up on its own pairs."""
    rates = []
    for judge, encodings in zip((sides.ours, sides.batched, sides.single), asked, strict=True):
        judge(encodings[:2])
        times = [timed(lambda judge=judge, encodings=encodings: judge(encodings))[1] for _ in range(2)]
        flops = sum(useful_flops(shape, len(one.ids)) for one in encodings)
        rates.append((len(encodings) / min(times), flops / min(times) / dense))
    print(f"\n{name + ' tokens' if name.isdigit() else name:14}{'pairs/s':>12}{'of dense':>10}{'ours / it':>11}")
    for side, (rate, fraction) in zip(("ours", "padded batches", "one at a time"), rates, strict=True):
        print(f"{side:14}{rate:>12.2f}{fraction:>10.1%}{rates[0][0] / rate:>11.2f}")
    return {
        f"pairs_per_s_{name}": round(rates[0][0], 2),
        f"fraction_{name}": round(rates[0][1], 4),
        f"vs_batched_{name}": round(rates[0][0] / rates[1][0], 2),
        f"vs_single_{name}": round(rates[0][0] / rates[2][0], 2),
    }


def agreement(sides: Sides, encodings: Encodings) -> dict[str, float]:
    """How far P is from transformers' in fp32. Questions are in the order of `Asked.match`, 20 to five answers."""
    places = [(i, j) for i in range(5) for j in range(5) if i != j]
    encodings = encodings[: len(encodings) // len(places) * len(places)]

    def chances(logits: np.ndarray) -> np.ndarray:
        by_match = logits.astype(np.float64).reshape(-1, len(places))  # (M, 20)
        both = by_match[:, [places.index((j, i)) for i, j in places]]  # (M, 20), the other order of each pair
        return 1 / (1 + np.exp(-(by_match - both) / 2))

    exact = sides.exact(encodings)
    found = {name: judge(encodings) for name, judge in (("ours", sides.ours), ("batched", sides.batched))}
    moved = {name: float(np.abs(chances(logits) - chances(exact)).max()) for name, logits in found.items()}
    print(
        f"\nP of {len(encodings)} pairs against transformers' in fp32 (logits' deviation {exact.std():.2f}): ours moves by at "
        f"most {moved['ours']:.1e}, padded batches by {moved['batched']:.1e}"
    )
    return {"p_deviation": moved["ours"], "p_deviation_batched": moved["batched"]}


def stretched(encoding: PairEncoding, tokens: int) -> PairEncoding:
    """A question of so many tokens: [CLS] <|source|> .. [SEP], then two candidates of equal length, from the same ids."""
    ids = encoding.ids
    heads = [ids[encoding.source - 1 :][:2], ids[encoding.candidate1 - 1 :][:2], ids[encoding.candidate2 - 1 :][:2]]
    source = tokens // 5
    first = (tokens - source) // 2
    text = [token for token in ids[2 : encoding.candidate1 - 2]] or [ids[-1]]
    joined: list[int] = []
    places = []
    for head, length in zip(heads, (source, first, tokens - source - first), strict=True):
        places.append(len(joined) + 1)
        inner = length - 3
        joined += [*head, *(text * (inner // len(text) + 1))[:inner], ids[-1]]
    return PairEncoding(joined, *places)


def dense_rate(width: int, device: str) -> float:
    """Floating-point operations a second of one large product, fp16 on CUDA: the best of five takes of twenty."""
    import torch

    dtype = torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))

    def several() -> None:
        for _ in range(20):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    several()
    return 20 * 2 * width**3 / min(timed(several)[1] for _ in range(5))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gave, and seconds. Judging ends with logits on the host, so nothing is under way any more."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


if __name__ == "__main__":
    main()
