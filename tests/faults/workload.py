"""Two pipelines to be disturbed: a whole iteration of Algorithm 1, and one that commits its work naively.

The iteration is that of flows/iteration.py without Prefect: every stage, its worker processes, chunks, parts, checkpoints,
manifests and the index of the run, on a random policy of 0.2 M parameters and a random PairRM, float32 on the CPU.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec

import sppo.check
import sppo.duel
import sppo.estimate
import sppo.evaluate
import sppo.export
import sppo.generate
import sppo.judges
import sppo.policy
import sppo.rank
import sppo.resolve
import sppo.runs
import sppo.score
import sppo.split
import sppo.train
from sppo.hardware import load_hardware
from sppo.overruling import pass_gates
from sppo.recipe import load_recipe
from sppo.runs import Setup, policy_before, samples_before
from sppo.store import Store

RUN = "faulty"
PROMPTS = 12
CHUNK = 4
"""Prompts a chunk, so that a stage has several: 32 outside these tests."""
RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
HARDWARE = """
name: one-core
device: cpu
threads: 1
peak_tflops: 0.1
generate: {processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 8, timeout_s: 120}
rank: {processes: 1, tokens_per_batch: 1024, timeout_s: 120}
train:
  processes: 1
  tokens_per_device: 512
  zero_stage: 0
  offload: none
  recompute_activations: false
  checkpoint_steps: 1
  timeout_s: 120
"""
OVERRIDES = (
    "iterations=1",
    f"prompts.source={{kind: world, train_prompts: {PROMPTS}, test_prompts: {CHUNK}}}",
    "prompts.max_prompt_tokens=256",
    "generation={engine: transformers, responses: 2, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
    "selection={responses: all, drop_ties: false, cut: keep, empty: keep}",
    "training.learning_rate=0.01",
    "training.schedule_epochs=1",
    "training.stop_epochs=1",
    f"training.global_batch={CHUNK}",
    "training.max_tokens=300",
    "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
    "evaluation.judges=[{kind: world-rule}]",
    f"evaluation.max_prompts={CHUNK}",
    "evaluation.resamples=50",
    "evaluation.gates=null",  # a random policy gains nothing
)


def iteration(url: str, scratch: Path, world: dict[str, str]) -> None:
    """Iteration 1, started or continued. world: the folders of the random policy and judge, and of the hardware file."""
    setup = _setup(url, scratch, world)
    store, recipe, hardware, launch = setup.store, setup.recipe, setup.hardware, setup.launch
    base = sppo.policy.build(store, recipe)
    judge = sppo.judges.build(store, recipe.judge, recipe)
    judges = [sppo.judges.build(store, each, recipe) for each in recipe.evaluation.judges]
    prompts = store.build(sppo.split.step(recipe, base))
    drawn, held_out = sppo.generate.training_draw(recipe, prompts, 1), sppo.generate.held_out_draw(recipe, prompts)

    policy = policy_before(store, RUN, 1, base)
    first = sppo.export.build(store, recipe, base)
    responses, before = sppo.generate.build(store, recipe, hardware, first, [drawn, held_out], launch=launch)
    ranked = store.build(sppo.rank.step(recipe, hardware, judge, drawn.prompts, responses, launch))
    targets = store.build(sppo.estimate.step(recipe, ranked, responses))
    trained = store.build(sppo.train.step(recipe, hardware, 1, policy, drawn.prompts, responses, targets, launch))

    exported = sppo.export.build(store, recipe, trained)
    answers = sppo.generate.build(store, recipe, hardware, exported, [held_out], launch=launch)[0]
    samples = [*samples_before(store, RUN, 1), before, answers]
    duels = sppo.duel.build(store, recipe, hardware, judges, held_out.prompts, answers, samples[:-1], launch=launch)
    evaluated = store.build(sppo.evaluate.step(recipe, 1, samples, duels))
    scores = {0: sppo.score.build(store, recipe, hardware, first, held_out.prompts, answers, launch=launch)}
    checked = store.build(sppo.check.step(recipe, samples, duels, scores, (responses, ranked)))

    stages = {"policy": policy, "judge": judge, "split": prompts, "generate": responses, "rank": ranked, "estimate": targets}
    stages |= {"train": trained, "evaluate": evaluated, "check": checked, "score.0": scores[0]}
    index = sppo.runs.write_iteration(setup, 1, stages, samples, duels)
    pass_gates(store, index, None)


def _setup(url: str, scratch: Path, world: dict[str, str]) -> Setup:
    store = Store(url, scratch)
    judge = (
        f"{{kind: pairrm, source: {{kind: folder, path: {world['judge']}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    )
    changes = (*OVERRIDES, f"policy.source={{kind: folder, path: {world['policy']}}}", f"judge={judge}")
    asked = load_recipe("tiny", RECIPES, changes)
    if world.get("store") != "tried out":
        store.check_writable()
    recipe = sppo.runs.start(store, RUN, asked, lambda open_recipe: sppo.resolve.resolve(open_recipe, store))
    return Setup(run=RUN, recipe=recipe, hardware=load_hardware(world["hardware"], Path()), store=store)


NAIVE_STAGES = ("draw", "train")
NAIVE_FILES = 2


def naive(url: str, scratch: Path, world: dict[str, str]) -> None:
    """Two stages that commit as many a script does: a folder that exists is done, files are written in place and are read
    without a look at what is in them. What it leaves must not pass for whole."""
    filesystem, root = fsspec.core.url_to_fs(url, **_plain_options(url))
    digest = "begin"
    for stage in NAIVE_STAGES:
        folder = f"{root}/{stage}"
        if not filesystem.exists(folder):
            filesystem.makedirs(folder, exist_ok=True)
            for number in range(NAIVE_FILES):
                with filesystem.open(f"{folder}/{number}.json", "wb") as stream:
                    stream.write(_naive_rows(stage, number, digest))
        names = sorted(path.rsplit("/", 1)[1] for path in filesystem.ls(folder, detail=False))
        contents = [filesystem.cat_file(f"{folder}/{name}") for name in names]
        digest = hashlib.sha256(b"".join(contents)).hexdigest()


def _plain_options(url: str) -> dict[str, Any]:
    options = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 2}}
    return {"use_listings_cache": False, "skip_instance_cache": True, "config_kwargs": options} if url.startswith("s3:") else {}


def _naive_rows(stage: str, number: int, before: str) -> bytes:
    rows = [
        {"stage": stage, "row": row, "value": hashlib.sha256(f"{before}{number}{row}".encode()).hexdigest()}
        for row in range(20)
    ]
    return json.dumps(rows).encode()


PIPELINES = {"iteration": iteration, "naive": naive}
