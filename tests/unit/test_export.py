"""What engines load of a trained policy: the values they would round to themselves, in half the bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sppo.export
from sppo.recipe import Recipe, load_recipe
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"


@pytest.fixture
def trained(store: Store, random_policy: Callable[[str], Path], tmp_path: Path) -> Artifact:
    """A policy as training leaves it, with values that bf16 cannot hold."""
    folder = random_policy("llama")
    weights = {name: value.float() + 1e-4 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")

    def run(workspace: Workspace) -> Outcome:
        workspace.add_files([path for path in sorted(folder.iterdir()) if path.suffix != ".safetensors"])
        workspace.add_file(tmp_path / "model.safetensors")
        return Outcome("made by a test")

    return store.build(Step(Identity("train", 1, {}, {}), run))


def of_dtype(dtype: str) -> Recipe:
    return load_recipe("tiny", RECIPES, (f"policy.dtype={dtype}",))


def test_an_export_has_the_fp32_values_rounded_once_and_everything_else_byte_for_byte(store: Store, trained: Artifact) -> None:
    exported = sppo.export.build(store, of_dtype("bfloat16"), trained)
    exact, rounded = (load_file(each.path("model.safetensors")) for each in (trained, exported))
    assert exact.keys() == rounded.keys()
    for name, value in rounded.items():
        assert torch.equal(value, exact[name].to(torch.bfloat16))
    assert json.loads(exported.text("config.json"))["dtype"] == "bfloat16"
    same = [name for name in exported.file_names() if name not in ("config.json", "model.safetensors")]
    assert [exported.path(name).read_bytes() for name in same] == [trained.path(name).read_bytes() for name in same]
    assert sorted(exported.file_names()) == sorted(trained.file_names())


def test_an_export_is_made_once_and_loads_as_a_model(store: Store, trained: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    exported = sppo.export.build(store, of_dtype("bfloat16"), trained)
    assert sppo.export.build(store, of_dtype("bfloat16"), trained).reference == exported.reference
    model = AutoModelForCausalLM.from_pretrained(exported.folder())
    assert model.dtype == torch.bfloat16


def test_what_has_nothing_to_round_is_its_own_export(store: Store, trained: Artifact) -> None:
    assert sppo.export.build(store, of_dtype("float32"), trained) is trained
    base = store.build(
        Step(Identity("policy", 1, {}, {}), lambda workspace: (workspace.add_text("x", "x"), Outcome("made"))[1])
    )
    assert sppo.export.build(store, of_dtype("bfloat16"), base) is base
