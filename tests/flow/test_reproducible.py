"""The same recipe computes the same on another store and other hardware; on the same machine, to the byte up to training."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flows.iteration import sppo_iteration
from sppo.runs import IterationIndex
from sppo.store import Artifact, Store

Arguments = dict[str, Any]
BEFORE_TRAINING = ("policy", "judge", "split", "generate", "rank", "estimate")


def run_in(small: Arguments, store: str, hardware: str) -> tuple[IterationIndex, Store]:
    arguments = {**small, "store": store, "hardware": hardware}
    return sppo_iteration(**arguments, run="again", iteration=1), Store(store)


@pytest.fixture(scope="module")
def decided(small: Arguments, random_judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    """The small run under a judge of strong opinions and with the tiny recipe's learning rate. Where a judge is undecided the
    gradients are rounding errors, which RMSprop scales up to whole steps, and no two machines would agree."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("decided") / "judge"
    shutil.copytree(random_judge, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["head_layer.4.weight"] *= 2000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    overrides = tuple(override.replace(str(random_judge), str(folder)) for override in small["overrides"])
    return {**small, "overrides": (*overrides, "training.learning_rate=1e-4")}


@pytest.fixture(scope="module")
def first(decided: Arguments, tmp_path_factory: pytest.TempPathFactory) -> tuple[IterationIndex, Store]:
    return run_in(decided, str(tmp_path_factory.mktemp("one")), decided["hardware"])


def weights(trained: Artifact) -> dict[str, npt.NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return dict(load_file(trained.path("model.safetensors")))


def largest_difference(one: Artifact, other: Artifact) -> float:
    others = weights(other)
    return max(float(np.abs(tensor - others[name]).max()) for name, tensor in weights(one).items())


def test_on_the_same_machine_everything_is_the_same_to_the_byte_and_training_to_1e_5(
    decided: Arguments, first: tuple[IterationIndex, Store], tmp_path: Path
) -> None:
    index, store = first
    again, other = run_in(decided, str(tmp_path / "two"), decided["hardware"])
    for stage in BEFORE_TRAINING:
        assert again.artifacts[stage] == index.artifacts[stage], stage  # fingerprint and content
    assert largest_difference(again.opened(other, "train"), index.opened(store, "train")) < 1e-5


def test_in_s3_with_two_processes_a_stage_targets_and_weights_are_the_same(
    decided: Arguments, first: tuple[IterationIndex, Store], s3_url: str, tmp_path: Path
) -> None:
    index, store = first
    text = Path(decided["hardware"]).read_text()
    text = text.replace("processes: 1", "processes: 2").replace("tokens_per_device: 512", "tokens_per_device: 100")
    hardware = tmp_path / "two-processes.yaml"
    hardware.write_text(
        text.replace("zero_stage: 0", "zero_stage: 3").replace("tokens_per_batch: 1024", "tokens_per_batch: 300")
    )

    again, other = run_in(decided, s3_url, str(hardware))

    one, two = (opened.opened(at, "generate").tables() for opened, at in ((index, store), (again, other)))
    assert one.select(["prompt_id", "k", "token_ids", "text"]) == two.select(["prompt_id", "k", "token_ids", "text"])
    one, two = (opened.opened(at, "estimate").tables() for opened, at in ((index, store), (again, other)))
    assert one.select(["prompt_id", "k", "selected", "role"]) == two.select(["prompt_id", "k", "selected", "role"])
    difference = one["win_probability"].to_numpy() - two["win_probability"].to_numpy()
    assert np.abs(difference).max() < 1e-4  # logits agree to 1e-7 before the head is scaled by 2000
    assert np.ptp(one["win_probability"].to_numpy()) > 0.3  # there was something to agree on
    assert largest_difference(again.opened(other, "train"), index.opened(store, "train")) < 1e-4
