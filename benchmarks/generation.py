"""Generation: our stage against the bare engine, and against the reference's way of K passes with one sample each.

    .venv/bin/python benchmarks/generation.py [--quick] [--prompts FILE.parquet] [--rounds N]

One engine load serves all sides, which take turns; its prefix cache is emptied before each turn. Last line: one JSON object.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from sppo.engines import EngineSettings
from sppo.engines.vllm_engine import VllmEngine, engine_arguments, set_environment
from sppo.generate import CHUNK, DrawTask, GenerateRun, prompt_seed
from sppo.launch import thread_environment
from sppo.progress import ProgressFile
from sppo.records import Prompt, to_table
from sppo.store import Identity, Outcome, Step, Store, Workspace
from sppo.workers.generate import ChunkWriter, answer_all

K = 5
VOCABULARY = 4096
STOPS = tuple(range(4, 68))
"""64 of 4,096 tokens of a random policy end a response: lengths as drawn by chance, 41 tokens on average of up to 64."""
PASS_SEEDS = (0, 50, 100, 150, 200)
"""The reference's."""
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ '<user>' + m['content'] + '</turn>' }}{% endfor %}{{ '<assistant>' }}"


@dataclass
class Side:
    """One way to draw the same responses."""

    name: str
    draw: Callable[[int], int]
    """A round's number to tokens drawn."""
    rates: list[float] = field(default_factory=list)
    """Tokens a second, by round."""
    cpu: list[float] = field(default_factory=list)
    """Tokens a CPU-second, by round."""
    tokens: int = 0
    """Of the latest round."""


def main() -> None:
    """Measure and print."""
    options = read_options()
    texts = read_prompts(options.prompts)
    texts = texts[:: max(1, len(texts) // 64)] if options.quick else texts
    os.environ.update(thread_environment(options.threads) | {"OMP_WAIT_POLICY": "PASSIVE", "VLLM_LOGGING_LEVEL": "ERROR"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts, millions = make_policy(folder / "policy", texts, options.width, options.layers)
        settings = EngineSettings(
            engine="vllm",
            device="cpu",
            dtype="float32",
            stop_token_ids=STOPS,
            max_model_len=max(len(prompt.token_ids) for prompt in prompts) + options.answer_tokens,
            max_concurrent=128,
            tensor_parallel=1,
            memory_share=0.5,
            kv_cache_mib=512,
        )
        sides = make_sides(folder, prompts, settings, options.answer_tokens)
        for number in range(options.rounds + 1):
            for side in sides if number else sides[:3]:  # round 0 warms up
                take_turn(side, number)
        report(sides, prompts, options, millions)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 64 of the prompts, and 2 rounds")
    parser.add_argument("--prompts", type=Path, help="Parquet file with a column `instruction`; without it, prompts are made")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--answer-tokens", type=int, default=64, help="at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=512, help="of the policy; below 512 the engine's own overhead shows most")
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 3)
    return options


def read_prompts(path: Path | None) -> list[str]:
    """The file's instructions, or 640 made ones of 5 to 120 words."""
    if path is not None:
        return [str(text) for text in pq.read_table(path, columns=["instruction"])["instruction"].to_pylist()]
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(2000)]
    return [" ".join(draw.choices(words, k=min(120, 5 + int(draw.expovariate(1 / 25))))) for _ in range(640)]


def make_policy(folder: Path, texts: list[str], width: int, layers: int) -> tuple[list[Prompt], float]:
    """A random Llama whose tokenizer was trained on the prompts, the prompts rendered for it, its size in millions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    controls = ["<s>", "</turn>", "<user>", "<assistant>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</turn>", additional_special_tokens=controls[2:]
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = LlamaForCausalLM(shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts = []
    for number, text in enumerate(texts):
        turns = [{"role": "user", "content": text}]
        token_ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        prompts.append(Prompt(f"{number:05d}", turns, list(token_ids)[:1024]))
    return prompts, model.num_parameters() / 1e6


def make_sides(folder: Path, prompts: list[Prompt], settings: EngineSettings, max_tokens: int) -> list[Side]:
    """Load one engine and build the ways to use it."""
    set_environment(settings)
    import torch
    import vllm

    llm = vllm.LLM(**{**engine_arguments(folder / "policy", settings), "skip_tokenizer_init": False})
    inputs: Any = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
    shared = {"temperature": 1.0, "top_p": 1.0, "max_tokens": max_tokens, "stop_token_ids": list(STOPS), "ignore_eos": True}

    def bare(number: int | None, **more: Any) -> int:
        llm.reset_prefix_cache()
        seeds = [None if number is None else prompt_seed(number, 1, prompt.prompt_id) for prompt in prompts]
        parameters = [vllm.SamplingParams(n=K, seed=seed, **shared, **more) for seed in seeds]
        outputs = llm.generate(inputs, parameters, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    def passes(cold: bool) -> int:
        tokens = 0
        for seed in PASS_SEEDS:
            if cold:
                llm.reset_prefix_cache()
            torch.manual_seed(seed)  # of the engine; one seed for every request would give all prompts the same noise
            outputs = llm.generate(inputs, vllm.SamplingParams(n=1, **shared), use_tqdm=False)
            tokens += sum(len(one.token_ids) for output in outputs for one in output.outputs)
        return tokens

    store = Store(str(folder / "store"), folder / "scratch")
    engine = VllmEngine.around(llm.llm_engine, settings)

    def ours(number: int) -> int:
        llm.reset_prefix_cache()
        return run_stage(store, engine, prompts, number, max_tokens)

    return [
        Side("our stage: seeds, log-probs, text, chunks committed", ours),
        Side("bare engine, n=K: seeded as ours, log-probs", lambda number: bare(number, logprobs=0)),
        Side("bare engine, n=K: neither seeds nor log-probs", lambda _: bare(None)),
        # the reference starts a process for each pass, so each begins with an empty cache; its loading is not counted here
        Side("K passes, n=1, each with an empty cache (reference)", lambda _: passes(cold=True)),
        Side("K passes, n=1, cache kept between passes", lambda _: passes(cold=False)),
    ]


def run_stage(store: Store, engine: VllmEngine, prompts: list[Prompt], number: int, max_tokens: int) -> int:
    """The worker's whole loop, into a store of its own for the round: from opening the prompts to the last chunk."""

    def write(workspace: Workspace) -> Outcome:
        workspace.add_table(to_table(Prompt, prompts), "train-1.parquet")
        return Outcome("prompts")

    split = store.build(Step(Identity("split", 1, {}, {}), write))
    task = DrawTask(
        stage="generate",
        fingerprint=f"{number:064x}",
        prompts=split.reference,
        file="train-1.parquet",
        limit=len(prompts),
        chunks=tuple(range(-(-len(prompts) // CHUNK))),
        responses=K,
        temperature=1.0,
        top_p=1.0,
        max_tokens=max_tokens,
        seed=number,
        label=1,
    )
    run = GenerateRun(policy=f"policy/{'0' * 64}", settings=engine.settings, draws=(task,))
    from sppo.policy import load_tokenizer

    with store.workspace("generate", task.fingerprint) as workspace:
        writer = ChunkWriter(run, [workspace], load_tokenizer(store.scratch.parent / "policy"))
        tokens, _ = answer_all(engine, writer, ProgressFile(store.scratch / "progress.json"), len(prompts))
    return tokens


def take_turn(side: Side, number: int) -> None:
    """One measurement; that of round 0 is thrown away."""
    wall, cpu = time.perf_counter(), time.process_time()
    side.tokens = side.draw(number)
    if number:
        side.rates.append(side.tokens / (time.perf_counter() - wall))
        side.cpu.append(side.tokens / (time.process_time() - cpu))


def report(sides: list[Side], prompts: list[Prompt], options: argparse.Namespace, millions: float) -> None:
    """The table and the JSON line, from the best round of each side: what else runs on a machine only ever slows a round."""
    lengths = [len(prompt.token_ids) for prompt in prompts]
    source = options.prompts.name if options.prompts else "made"
    mean = statistics.mean(lengths)
    answers = sides[0].tokens / len(prompts) / K
    print(
        f"generation: {len(prompts)} prompts ({source}; {mean:.0f} tokens on average, {max(lengths)} at most), K = {K}, "
        f"answers of {answers:.0f} tokens on average, {options.answer_tokens} at most;\n"
        f"random Llama of {millions:.0f} M parameters, vLLM on CPU, fp32, {options.threads} thread(s); "
        f"{options.rounds} rounds, sides in turn, cache emptied before each, loading not counted; the best round of each side"
    )
    print(f"\n{'side':56} {'tokens/s':>10} {'tokens/CPU-s':>13} {'ours / it':>10} {'by CPU':>8}")
    ratios = []
    for side in sides:
        wall, cpu = max(sides[0].rates) / max(side.rates), max(sides[0].cpu) / max(side.cpu)
        ratios.append(round(wall, 3))
        print(f"{side.name:56} {max(side.rates):10.0f} {max(side.cpu):13.0f} {wall:10.2f} {cpu:8.2f}")
    print(
        "\nengine_fraction: our stage / the bare engine asked for the same; plain_engine_fraction: / the bare engine asked for "
        "neither\nseeds nor log-probs; vs_k_passes: / the reference's way"
    )
    print(json.dumps({"engine_fraction": ratios[1], "vs_k_passes": ratios[3], "plain_engine_fraction": ratios[2]}))


if __name__ == "__main__":
    main()
