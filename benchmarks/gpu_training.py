"""Training on one GPU: our packed steps on a Gemma-2-2B-shaped policy against the reference's way, and how much of the card is
used. Under ten minutes.

    python benchmarks/gpu_training.py [--quick] [--data FILE.parquet] [--tokens-per-device N] [--recompute] [--no-lora]
    python benchmarks/gpu_training.py --device cpu --tiny

Needs torch, transformers and this project. Random weights made from the shape here, bf16 with fp32 masters and RMSprop on both
sides, all weights trained. First the gradients by this device's attention against the plain one in fp32, then both ways in
turn, then LoRA on the 9B shape, then TRL where it can be imported. Useful MFU counts each prompt once, no padding, no
reference, nothing recomputed. Writes the numbers to $OUT/gpu_training.json if OUT is set. Last line: one JSON object.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # before torch starts

import argparse
import copy
import datetime
import gc
import importlib.util
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

import numpy as np
import torch

from benchmarks.material.card import Card, Way, commit, in_turn, mfus, print_ways
from benchmarks.material.gradients import SMALL_HEADS, Shape, gradient_differences, make_model, shape
from benchmarks.material.masters import Masters
from benchmarks.material.packed import Trainer, read_prompts, training_of
from benchmarks.material.preferences import REAL, Steps, make_steps, mixed_lengths, real_lengths, save_tokenizer, write_steps
from benchmarks.material.sides import RECIPE, ROOT
from benchmarks.material.turns import Side
from benchmarks.rivals import released
from sppo.recipe.training import Adapter, LoraAdapter, NoAdapter
from sppo.train import adapters, attention
from sppo.train.flops import training_flops
from sppo.train.forward import packed_policy
from sppo.train.shape import shape_of

Numbers = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    full: Shape
    """All its weights are trained."""
    lora: Shape
    prompts: int
    """A step."""
    product: int
    """Width of the product that the card's rate is measured by."""


FULL = Size(shape(2304, 9216, 26, 8, 4), shape(3584, 14336, 42, 16, 8), 32, 8192)
TINY = Size(shape(64, 128, 2, 2, 1, **SMALL_HEADS), shape(64, 128, 2, 2, 1, **SMALL_HEADS), 4, 256)


def main() -> None:
    """Measure and print."""
    options = read_options()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_training: no CUDA device is here, nothing measured (`--device cpu --tiny` tries the code)")
        print(json.dumps({}))
        return
    size, card = TINY if options.tiny else FULL, Card(options.device)
    torch.manual_seed(0)
    print(f"gpu_training: {datetime.date.today()}, {card.name}, commit {commit()}, torch {torch.__version__}")
    rate = card.product_rate(size.product)
    said = "no data sheet known here" if card.peak is None else f"{card.peak / 1e12:.0f} by its data sheet"
    print(f"bf16: {rate / 1e12:.1f} TFLOP/s by a product of {size.product} x {size.product} x {size.product}; {said}")
    found = {"dense_tflops": round(rate / 1e12, 2)} | gradient_differences(options.device)
    steps = make_batches(size, options)
    found |= full_fine_tuning(size, steps, options, card, rate)
    gc.collect()
    if options.lora:
        found |= low_rank(size, steps, options, card, rate)
        gc.collect()
    if options.trl:
        found |= against_trl(size, steps, options, card, found["pairs_per_s"])
    if os.environ.get("OUT"):
        about = {"card": card.name, "date": str(datetime.date.today()), "commit": commit()}
        (Path(os.environ["OUT"]) / "gpu_training.json").write_text(json.dumps(about | found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one step that counts instead of three, no LoRA, no TRL")
    parser.add_argument("--data", type=Path, default=REAL, help="prompts and answers, as in alpaca_eval_responses.parquet")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a policy and numbers for trying the code")
    parser.add_argument("--tokens-per-device", type=int, default=8192)
    parser.add_argument("--recompute", action="store_true", help="recompute activations on our side too")
    parser.add_argument("--no-lora", dest="lora", action="store_false", help="leave LoRA on the 9B shape out")
    parser.add_argument("--no-trl", dest="trl", action="store_false", help="leave TRL out")
    options = parser.parse_args()
    options.steps = 1 if options.quick or options.tiny else 3
    options.lora, options.trl = options.lora and not options.quick, options.trl and not options.quick
    return options


def make_batches(size: Size, options: argparse.Namespace) -> Steps:
    """Pairs with real lengths where they are there, else log-uniform ones; the first step warms up."""
    count = size.prompts * (options.steps + 1)
    real = options.data.is_file() and not options.tiny
    lengths = real_lengths(count, 2, options.data) if real else mixed_lengths(count, 2, 60 if options.tiny else 500)
    steps = make_steps(lengths, size.full.get("vocab_size", 10_240), size.prompts)
    tokens = [one.tokens for step in steps for one in step]
    print(
        f"{'real' if real else 'made, log-uniform'} lengths, {size.prompts} prompts with 2 responses a step, "
        f"{np.mean(tokens):.0f} tokens each (the prompt counted once), {max(tokens)} at most"
    )
    return steps


def ours_on(policy: Any, masters: Masters, options: argparse.Namespace) -> Trainer:
    """Our steps on bf16 weights with fp32 masters."""
    training = training_of(RECIPE)
    return Trainer(
        packed_policy(policy),
        lambda loss, last: loss.backward(),
        masters.step,
        nullcontext,
        training,
        options.tokens_per_device,
        options.device,
    )


def full_fine_tuning(size: Size, steps: Steps, options: argparse.Namespace, card: Card, rate: float) -> Numbers:
    """Ours and the reference's way in turn, on one policy and one set of masters: two would not fit."""
    policy = make_model(size.full, options.device, torch.bfloat16)
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    reference.set_attn_implementation("eager")
    masters = Masters(policy.parameters(), RECIPE["learning_rate"])
    ours = ours_on(policy, masters, options)
    rival = released.Trainer(policy, reference, masters, min(8, size.prompts), RECIPE["eta"])
    prompts = read_prompts(steps)
    values = np.zeros(sum(len(one.responses) for step in prompts for one in step))  # (R,), what it costs does not hang on them

    def set_to(attend: str, recompute: bool) -> None:
        policy.set_attn_implementation(attend)
        if recompute:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            policy.gradient_checkpointing_disable()

    packed = partial(set_to, attention.NAME, options.recompute)
    ways = [
        Way("ours, sampler's reference", packed, lambda n: _nothing(ours.step(prompts[n], values)), partial(halve, ours)),
        Way(
            "ours, reference recomputed",
            packed,
            lambda n: _nothing(ours.log_probs(prompts[n]), ours.step(prompts[n], values)),
            partial(halve, ours),
        ),
        Way(
            "the reference's way, eager attention, activations recomputed",
            partial(set_to, "eager", True),
            lambda n: _nothing(rival.step(steps[n])),
            partial(halve, rival),
        ),
    ]
    in_turn(ways, len(steps), card, policy, masters)
    flops = mean_flops(size.full, steps)
    print(f"\nfull fine-tuning of {sum(each.numel() for each in masters.weights) / 1e6:.0f} M parameters")
    print_ways(ways, size.prompts, flops, rate, card.peak)
    mine, recomputed, other = (min(way.seconds) for way in ways)
    return {
        "pairs_per_s": round(size.prompts / mine, 3),
        "vs_reference": round(other / mine, 3),
        "vs_reference_recomputed": round(other / recomputed, 3),
        **mfus("mfu", flops / mine, rate, card.peak),
    }


def _nothing(*_: object) -> None:
    """Of what a step returns, nothing is kept."""


def halve(trainer: Trainer | released.Trainer) -> str:
    """Compute half as much at once."""
    if isinstance(trainer, Trainer):
        trainer.tokens_per_device //= 2
        return f"{trainer.tokens_per_device} tokens at once"
    trainer.micro_batch //= 2
    return f"{trainer.micro_batch} pairs at once"


def mean_flops(values: Shape, steps: Steps, adapter: Adapter | None = None) -> float:
    """Useful FLOPs of a step that counts, on average."""
    from transformers import Gemma2Config

    known = shape_of(Gemma2Config(**values).to_dict())
    lengths = [(len(one.prompt), [len(each) for each in one.responses]) for step in steps[1:] for one in step]
    return training_flops(known, lengths, adapter or NoAdapter(kind="none")) / (len(steps) - 1)


def low_rank(size: Size, steps: Steps, options: argparse.Namespace, card: Card, rate: float) -> Numbers:
    """LoRA on the larger shape, its activations recomputed: what the frozen bf16 weights leave of the card is little."""
    adapter = LoraAdapter(kind="lora", rank=16, alpha=32)
    policy = make_model(size.lora, options.device, torch.bfloat16)
    adapters.adapt(policy, adapter, 0)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.enable_input_require_grads()
    masters = Masters(policy.parameters(), RECIPE["learning_rate"])
    ours = ours_on(policy, masters, options)
    prompts = read_prompts(steps)
    values = np.zeros(sum(len(one.responses) for step in prompts for one in step))  # (R,)
    way = Way("ours, LoRA of rank 16", lambda: None, lambda n: _nothing(ours.step(prompts[n], values)), partial(halve, ours))
    in_turn([way], len(steps), card, policy, masters)
    flops = mean_flops(size.lora, steps, adapter)
    frozen = sum(each.numel() for each in policy.parameters()) / 1e6
    print(f"\nLoRA on {frozen:.0f} M parameters, activations recomputed")
    print_ways([way], size.prompts, flops, rate, card.peak)
    return mfus("lora_mfu", flops / min(way.seconds), rate, card.peak)


def against_trl(size: Size, steps: Steps, options: argparse.Namespace, card: Card, pairs_per_s: float) -> Numbers:
    """TRL as it ships, in a process of its own, on the same steps; fewer pairs at once where memory runs out."""
    if importlib.util.find_spec("trl") is None:
        print("TRL is not measured: it cannot be imported here (pip install trl)")
        return {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(size.full, options.device, torch.bfloat16).save_pretrained(folder / "policy")
        save_tokenizer(folder / "policy", size.full.get("vocab_size", 10_240))
        told = {
            **RECIPE,
            "policy": str(folder / "policy"),
            "steps": str(write_steps(steps, folder / "steps.json")),
            "settings": {},
        }
        told |= {"device": options.device, "pairs": size.prompts}
        gc.collect()
        card.forget_peak()
        for micro_batch in (8, 4, 2, 1):
            words = [sys.executable, ROOT / "benchmarks" / "rivals" / "trl_trainer.py"]
            each = json.dumps(told | {"micro_batch": min(micro_batch, size.prompts)})
            side = Side(f"TRL, {micro_batch} pairs at once", [*words, each], folder / "trl.log", size.prompts, 2 * size.prompts)
            try:
                side.start()
                side.take_round(1, counts=False)
                side.take_round(options.steps, counts=True)
            except RuntimeError as problem:
                print(f"{side.name}: {str(problem).splitlines()[-1]}")
                continue
            finally:
                side.end()
            rate = size.prompts * options.steps / min(side.wall)
            print(f"{side.name}, as shipped otherwise: {rate:.2f} pairs/s")
            return {"vs_trl": round(pairs_per_s / rate, 3)}
    return {}


if __name__ == "__main__":
    main()
