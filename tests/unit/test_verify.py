"""Verifying a run: every byte is read again, and what is wrong is named."""

from pathlib import Path

import pytest

from sppo.errors import RunError
from sppo.hardware import Hardware
from sppo.recipe import Recipe
from sppo.runs import Setup, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.verify import verify_run


@pytest.fixture
def trained(tiny: Recipe, cpu: Hardware, store: Store) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_text("weights", "weights.txt")
        return Outcome("")

    setup = Setup("demo", start(store, "demo", tiny, lambda recipe: recipe), cpu, store)
    artifact = store.build(Step(Identity("train", 1, {}, {}), run))
    write_iteration(setup, 1, {"train": artifact}, [], [])
    return artifact


def object_path(store: Store, artifact: Artifact) -> Path:
    entry = artifact.manifest.files[0]
    path = store.backend.local_path(entry.key(artifact.manifest.stage, artifact.manifest.fingerprint))
    assert path is not None
    return path


def test_an_intact_run_has_no_problem(store: Store, trained: Artifact) -> None:
    [verified] = verify_run(store, "demo")
    assert (verified.reference, verified.files, verified.size, verified.problem) == (trained.reference, 1, 7, "")


def test_a_flipped_bit_is_found_although_the_file_was_verified_before(store: Store, trained: Artifact) -> None:
    assert trained.text("weights.txt") == "weights"
    object_path(store, trained).write_text("weighty")  # the same size
    [verified] = verify_run(store, "demo")
    assert "weights.txt has sha256" in verified.problem
    assert f"delete the folder {trained.reference} of the store and run again" in verified.problem


def test_a_missing_object_and_a_missing_artifact_are_named(store: Store, trained: Artifact) -> None:
    object_path(store, trained).unlink()
    assert "is missing" in verify_run(store, "demo")[0].problem
    store.backend.delete(f"{trained.reference}/manifest.json")
    assert f"no artifact {trained.reference}" in verify_run(store, "demo")[0].problem


def test_an_index_that_points_at_other_content_is_found(store: Store, trained: Artifact) -> None:
    content = store.backend.read("runs/demo/iteration-1.json") or b""
    store.backend.replace("runs/demo/iteration-1.json", content.replace(trained.digest.encode(), b"0" * 64))
    assert "the run's index says 0000000000000000" in verify_run(store, "demo")[0].problem


def test_a_run_that_was_never_started_cannot_be_verified(store: Store) -> None:
    with pytest.raises(RunError, match="no run 'demo'"):
        verify_run(store, "demo")
