"""Training by real processes: DeepSpeed, ZeRO-0 to 3, one and two ranks, killed and resumed."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from sppo.errors import LaunchError
from sppo.hardware import Hardware, load_hardware
from sppo.launch import Group, WorkRecord, run_group
from sppo.progress import Report
from sppo.recipe import LoraAdapter, NoAdapter, Recipe, load_recipe
from sppo.records import Prompt, Response, Target, to_table
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.store.artifact import ArtifactFile
from sppo.train import step
from sppo.train.metrics import CLOCKED

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"
PROMPTS = 22
K = 3


class Inputs(NamedTuple):
    """What the train stage follows, made by hand: 22 prompts, the best and worst of 3 random responses."""

    policy: Artifact
    prompts: ArtifactFile
    responses: Artifact
    targets: Artifact


def artifact(store: Store, stage: str, make: Callable[[Workspace], object]) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        make(workspace)
        return Outcome("made by a test")

    return store.build(Step(Identity(stage, 1, {"test": stage}, {}), run))


def make_inputs(store: Store, folder: Path) -> Inputs:
    draws = np.random.default_rng(7)
    prompts, responses, targets = [], [], []
    for number in range(PROMPTS):
        name = f"prompt-{number:03d}"
        ids = [0, 2, *draws.integers(4, 260, draws.integers(3, 12)).tolist()]
        prompts.append(Prompt(name, [{"role": "user", "content": "x"}], ids))
        for k in range(K):
            length = int(draws.integers(1, 20))
            answer = [*draws.integers(4, 260, length).tolist(), 3]
            responses.append(Response(name, k, answer, "y", "stop", [0.0] * len(answer), 1))
            role = ("best", "worst", "other")[k]
            targets.append(Target(name, k, (0.9, 0.2, 0.5)[k], role != "other", role))
    policy = artifact(store, "policy", lambda workspace: [workspace.add_file(path) for path in sorted(folder.iterdir())])
    split = artifact(store, "split", lambda workspace: workspace.add_table(to_table(Prompt, prompts), "train-1.parquet"))
    drawn = artifact(
        store,
        "generate",
        lambda workspace: [
            workspace.add_table(to_table(Response, responses[start : start + 30]), f"chunk-{start // 30:05d}.parquet")
            for start in range(0, len(responses), 30)
        ],
    )
    wins = artifact(store, "estimate", lambda workspace: workspace.add_table(to_table(Target, targets), "targets.parquet"))
    return Inputs(policy, split.file("train-1.parquet"), drawn, wins)


def with_training(recipe: Recipe, dtype: str = "float32", **changes: object) -> Recipe:
    training = recipe.training.model_copy(
        update={"global_batch": 8, "max_tokens": 64, "schedule_epochs": 4, "stop_epochs": 4, **changes}
    )
    policy = recipe.policy.model_copy(update={"dtype": dtype})
    return recipe.model_copy(update={"training": training, "policy": policy})


def with_ranks(hardware: Hardware, processes: int, zero_stage: int, tokens: int, **changes: object) -> Hardware:
    layout = {"processes": processes, "zero_stage": zero_stage, "tokens_per_device": tokens, "checkpoint_steps": 2}
    return hardware.model_copy(update={"train": hardware.train.model_copy(update={**layout, **changes})})


def trained(store: Store, inputs: Inputs, recipe: Recipe, hardware: Hardware) -> Artifact:
    return store.build(step(recipe, hardware, 1, *inputs))


def weights_of(model: Artifact) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    weights: dict[str, np.ndarray] = load_file(model.path("model.safetensors"))
    return weights


def largest_difference(first: Artifact, second: Artifact) -> float:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def metrics_of(model: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in model.text("metrics.jsonl").splitlines()]


def unclocked(model: Artifact) -> list[dict[str, float]]:
    """The metrics without what the clock says."""
    return [{name: value for name, value in line.items() if name not in CLOCKED} for line in metrics_of(model)]


def kill_one_rank_at_the_first_checkpoint(store: Store, stage: Step) -> None:
    """Build a step in this thread; another sends SIGKILL to a rank as soon as a checkpoint is committed."""
    workspace = store.workspace("train", stage.identity.fingerprint)
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if any(name.startswith("checkpoint-") for name in workspace.parts()):
                killed.extend(ranks()[-1:])
                for process in killed:
                    os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(LaunchError, match="ended with"):  # by SIGKILL, or as a peer of who was
            store.build(stage)
    finally:
        over.set()
        watcher.join()
    assert killed


def ranks() -> list[int]:
    """Training processes below this one, which may have other children: servers of other tests."""
    children = psutil.Process().children(recursive=True)
    return sorted(child.pid for child in children if "sppo.workers.train" in " ".join(child.cmdline()))


@pytest.fixture(scope="module")
def store_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    base = tmp_path_factory.mktemp("training")
    return lambda name: Store(str(base / name), base / f"scratch-{name}")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return with_training(load_recipe("tiny", RECIPES))


@pytest.fixture(scope="module")
def machine() -> Hardware:
    return load_hardware("cpu", HARDWARE)


@pytest.fixture(scope="module")
def undisturbed(
    store_at: Callable[[str], Store], random_policy: Callable[[str], Path], recipe: Recipe, machine: Hardware
) -> Artifact:
    """Two ranks under ZeRO-3, one prompt at a time, never stopped."""
    store = store_at("undisturbed")
    return trained(store, make_inputs(store, random_policy("llama")), recipe, with_ranks(machine, 2, 3, 50))


def test_two_ranks_under_zero3_train_the_weights_of_one_rank_without_zero(
    store_at: Callable[[str], Store],
    random_policy: Callable[[str], Path],
    recipe: Recipe,
    machine: Hardware,
    undisturbed: Artifact,
) -> None:
    store = store_at("single")
    alone = trained(store, make_inputs(store, random_policy("llama")), recipe, with_ranks(machine, 1, 0, 200))
    assert largest_difference(alone, undisturbed) < 1e-5
    assert alone.manifest.fingerprint == undisturbed.manifest.fingerprint
    lines = metrics_of(alone)
    # 22 prompts in batches of 8: 3 steps an epoch, 4 epochs; the last batch of an epoch has 6 prompts, 12 responses
    assert [line["responses"] for line in lines] == [16, 16, 12] * 4
    # at the start log pi_theta = log pi_t: ((0.9 - 0.5)^2 + (0.2 - 0.5)^2) / 2 = 0.125, times eta^2 = 100 is 12.5
    assert lines[0]["loss"] == pytest.approx(0.125, rel=1e-5)
    assert lines[0]["loss_on_papers_scale"] == pytest.approx(12.5, rel=1e-5)
    for mine, theirs in zip(lines, metrics_of(undisturbed), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    assert lines[-1]["log_ratio_best"] > 0 > lines[-1]["log_ratio_worst"]
    assert store.workspace("train", alone.manifest.fingerprint).parts() == ["reference", "result"]


def test_a_rank_killed_in_the_middle_changes_no_byte_of_the_weights(
    store_at: Callable[[str], Store],
    random_policy: Callable[[str], Path],
    recipe: Recipe,
    machine: Hardware,
    undisturbed: Artifact,
) -> None:
    store = store_at("killed")
    inputs = make_inputs(store, random_policy("llama"))
    stage = step(recipe, with_ranks(machine, 2, 3, 50), 1, *inputs)
    kill_one_rank_at_the_first_checkpoint(store, stage)
    resumed = store.build(stage)
    assert resumed.manifest.counts["resumed_from_step"] >= 2
    assert resumed.digest == undisturbed.digest
    assert unclocked(resumed) == unclocked(undisturbed)


def test_a_checkpoint_of_another_layout_is_named_and_training_restarts(
    store_at: Callable[[str], Store],
    random_policy: Callable[[str], Path],
    recipe: Recipe,
    machine: Hardware,
    undisturbed: Artifact,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = store_at("relaid")
    inputs = make_inputs(store, random_policy("llama"))
    kill_one_rank_at_the_first_checkpoint(store, step(recipe, with_ranks(machine, 1, 1, 200), 1, *inputs))
    with caplog.at_level(logging.WARNING, "sppo"):
        again = trained(store, inputs, recipe, with_ranks(machine, 1, 2, 400))
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "layout ranks1-zero1" in warning
    assert "cannot continue under ranks1-zero2; training restarts from the iteration's start" in warning
    assert again.manifest.counts["resumed_from_step"] == again.manifest.counts["optimizer_restarted"] == 0
    assert largest_difference(again, undisturbed) < 1e-5


@pytest.mark.parametrize("adapter", [NoAdapter(kind="none"), LoraAdapter(kind="lora", rank=4, alpha=8)], ids=["whole", "lora"])
def test_another_layout_goes_on_from_the_last_weights_where_the_recipe_says_so(
    store_at: Callable[[str], Store],
    random_policy: Callable[[str], Path],
    recipe: Recipe,
    machine: Hardware,
    adapter: NoAdapter | LoraAdapter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = store_at(f"goes-on-{adapter.kind}")
    inputs = make_inputs(store, random_policy("llama"))
    changes = {"other_layout": "last_weights", "adapter": adapter, "learning_rate": 3e-3, "warmup_ratio": 0}
    keeping = with_training(recipe, dtype="bfloat16", **changes)
    kill_one_rank_at_the_first_checkpoint(store, step(keeping, with_ranks(machine, 2, 3, 100), 1, *inputs))
    with caplog.at_level(logging.WARNING, "sppo"):
        model = trained(store, inputs, keeping, with_ranks(machine, 1, 2, 400))
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    done = model.manifest.counts["resumed_from_step"]
    assert f"goes on from its weights at step {done} with a new optimizer, as training.other_layout last_weights" in warning
    assert model.manifest.counts["optimizer_restarted"] == 1
    lines = metrics_of(model)
    assert [line["step"] for line in lines] == list(range(1, 13))
    whole = store_at(f"never-stopped-{adapter.kind}")
    expected = metrics_of(trained(whole, make_inputs(whole, random_policy("llama")), keeping, with_ranks(machine, 1, 2, 400)))
    # what its first step sees is what the weights of `done` steps give; from pi_t the log-ratios would be 0
    assert abs(lines[done]["log_ratio_best"]) > 0.05
    assert lines[done]["log_ratio_best"] == pytest.approx(expected[done]["log_ratio_best"], rel=0.25)  # bf16


def test_a_gemma2_with_tied_weights_trains_under_zero3_and_loads_as_before(
    store_at: Callable[[str], Store], random_policy: Callable[[str], Path], recipe: Recipe, machine: Hardware
) -> None:
    from transformers import AutoModelForCausalLM

    store = store_at("gemma2")
    inputs = make_inputs(store, random_policy("gemma2"))
    changed = with_training(recipe, stop_epochs=1, optimizer="adamw", schedule="constant")
    model = trained(store, inputs, changed, with_ranks(machine, 2, 3, 200, recompute_activations=True))
    before, after = weights_of(inputs.policy), weights_of(model)
    assert before.keys() == after.keys()
    assert "lm_head.weight" not in after  # tied to the embeddings, stored once
    loaded = AutoModelForCausalLM.from_pretrained(model.folder())
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert np.array_equal(loaded.lm_head.weight.detach().numpy(), after["model.embed_tokens.weight"])
    # AdamW's first steps move each weight that has a gradient by about the learning rate: 0 + 2 x 1e-4
    moved = np.abs(after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"])
    assert 1e-5 < moved.mean() < 3e-4
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert model.path(name).read_bytes() == inputs.policy.path(name).read_bytes()


def test_a_bfloat16_policy_keeps_what_its_fp32_weights_have_learned(
    store_at: Callable[[str], Store], random_policy: Callable[[str], Path], recipe: Recipe, machine: Hardware
) -> None:
    """With the published eta and learning rate, far below what bf16 can hold, all fp32 weights move a little, unrounded."""
    store = store_at("bfloat16")
    inputs = make_inputs(store, random_policy("llama"))
    changed = with_training(recipe, dtype="bfloat16", stop_epochs=1, learning_rate=5e-7, eta=1000.0)
    model = trained(store, inputs, changed, with_ranks(machine, 2, 3, 100))
    before, after = weights_of(inputs.policy), weights_of(model)
    assert json.loads(model.text("config.json"))["dtype"] == "float32"
    assert {value.dtype for value in after.values()} == {np.dtype("float32")}
    # 3 steps of at most 10 x 5e-7 each (RMSprop's average starts at 0); bf16 would round 0.02 by up to 4e-5
    assert max(float(np.abs(after[name] - before[name]).max()) for name in after) < 1.5e-5
    moved = {name: float(np.mean(after[name] != before[name])) for name in after}
    assert moved.pop("model.embed_tokens.weight") > 0.5  # the rest are rows of tokens that no prompt has
    assert min(moved.values()) > 0.95


class Machines:
    """Each group on a machine of its own: here a scratch folder of its own, and the network is loopback."""

    def machines(self, stage: str, fingerprint: str) -> int:
        return 1

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        stores = [Store(store.url, store.scratch / f"machine-{group.number}") for group in groups]
        with ThreadPoolExecutor(len(groups)) as threads:
            runs = [threads.submit(run_group, group, at, "1", report) for group, at in zip(groups, stores, strict=True)]
        return [run.result() for run in runs]


def test_two_machines_train_what_two_ranks_on_one_machine_do_and_one_continues_what_two_began(
    store_at: Callable[[str], Store],
    random_policy: Callable[[str], Path],
    recipe: Recipe,
    machine: Hardware,
    undisturbed: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPPO_NODE_ADDRESS", "127.0.0.1")
    store = store_at("machines")
    inputs = make_inputs(store, random_policy("llama"))
    kill_one_rank_at_the_first_checkpoint(
        store, step(recipe, with_ranks(machine, 1, 3, 50, nodes=2), 1, *inputs, launch=Machines())
    )
    resumed = trained(store, inputs, recipe, with_ranks(machine, 2, 3, 50))
    assert resumed.manifest.counts["resumed_from_step"] >= 2  # from files that both machines had uploaded
    assert resumed.digest == undisturbed.digest
