"""What a recipe can ask of training besides all weights: adapters, stored log-probs, a loss of pairs, states in 8 bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sppo.errors import TrainError
from sppo.hardware import Hardware, load_hardware
from sppo.recipe import LoraAdapter, QloraAdapter, Recipe, load_recipe
from sppo.records import Prompt, Response, Target, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.train import step

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 16


@pytest.fixture
def inputs(store: Store, random_policy: Callable[[str], Path]) -> tuple[Artifact, ArtifactFile, Artifact, Artifact]:
    """16 prompts with a best and a worst response each; every stored log-prob is 0, which no policy gave."""
    draws = np.random.default_rng(7)
    prompts, responses, targets = [], [], []
    for number in range(PROMPTS):
        name = f"prompt-{number:03d}"
        prompts.append(Prompt(name, [{"role": "user", "content": "x"}], [0, 2, *draws.integers(4, 260, 6).tolist()]))
        for k, (role, wins) in enumerate((("best", 0.9), ("worst", 0.2))):
            answer = [*draws.integers(4, 260, int(draws.integers(2, 20))).tolist(), 3]
            responses.append(Response(name, k, answer, "y", "stop", [0.0] * len(answer), 1))
            targets.append(Target(name, k, wins, True, role))

    def artifact(stage: str, make: Callable[[Workspace], object]) -> Artifact:
        def run(workspace: Workspace) -> Outcome:
            make(workspace)
            return Outcome("made by a test")

        return store.build(Step(Identity(stage, 1, {"test": stage}, {}), run))

    folder = random_policy("llama")
    return (
        artifact("policy", lambda workspace: workspace.add_files(sorted(folder.iterdir()))),
        artifact("split", lambda workspace: workspace.add_table(to_table(Prompt, prompts), "train-1.parquet")).file(
            "train-1.parquet"
        ),
        artifact("generate", lambda workspace: workspace.add_table(to_table(Response, responses), "chunk-00000.parquet")),
        artifact("estimate", lambda workspace: workspace.add_table(to_table(Target, targets), "targets.parquet")),
    )


def asking_for(**changes: Any) -> Recipe:
    tiny = load_recipe("tiny", ROOT / "deployments" / "recipes")
    small = {"global_batch": 8, "max_tokens": 64, "schedule_epochs": 2, "stop_epochs": 2}
    return tiny.model_copy(update={"training": tiny.training.model_copy(update={**small, **changes})})


def on(ranks: int, zero_stage: int) -> Hardware:
    machine = load_hardware("cpu", ROOT / "deployments" / "hardware")
    layout = {"processes": ranks, "zero_stage": zero_stage, "tokens_per_device": 100}
    return machine.model_copy(update={"train": machine.train.model_copy(update=layout)})


def changed(before: Artifact, after: Artifact) -> set[str]:
    """Names of the weights that training moved."""
    old, new = (load_file(each.path("model.safetensors")) for each in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not np.array_equal(old[name].astype(np.float32), new[name])}


@pytest.mark.parametrize(
    ("adapter", "hardware"),
    [
        (LoraAdapter(kind="lora", rank=4, alpha=8, modules=("q_proj", "down_proj")), on(2, 3)),
        (QloraAdapter(kind="qlora", rank=4, alpha=8, modules=("q_proj", "down_proj")), on(1, 2)),
    ],
    ids=["lora", "qlora"],
)
def test_an_adapter_moves_the_layers_that_it_names_and_becomes_a_plain_policy(
    store: Store, inputs: tuple[Any, ...], adapter: Any, hardware: Hardware
) -> None:
    recipe = asking_for(adapter=adapter, learning_rate=1e-3)
    trained = store.build(step(recipe, hardware, 1, *inputs))
    layers = [f"model.layers.{number}.{name}.weight" for number in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert changed(inputs[0], trained) == set(layers)
    metrics = trained.manifest.metrics
    # log pi_theta = log pi_t at the start, in 4 bits as well: ((0.9 - 0.5)^2 + (0.2 - 0.5)^2) / 2 = 0.125
    assert metrics["first_loss"] == pytest.approx(0.125, rel=1e-4)
    assert metrics["last_loss"] < metrics["first_loss"]


def test_log_probs_that_the_policy_never_gave_are_found_by_the_audit(store: Store, inputs: tuple[Any, ...]) -> None:
    with pytest.raises(TrainError, match=r"(?s)reference_tolerance.*reference.*recompute"):
        store.build(step(asking_for(reference="sampler"), on(1, 0), 1, *inputs))


def test_a_loss_of_pairs_and_states_in_8_bits_train(store: Store, inputs: tuple[Any, ...]) -> None:
    trained = store.build(step(asking_for(loss="dpo", optimizer="rmsprop_8bit"), on(2, 2), 1, *inputs))
    metrics = trained.manifest.metrics
    # a pair's loss stands at its best's place: log 2 over two responses
    assert metrics["first_loss"] == pytest.approx(np.log(2) / 2, rel=1e-4)
    assert metrics["last_loss"] < metrics["first_loss"]
