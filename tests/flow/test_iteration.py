"""Algorithm 1 as flows on a real Prefect server, with real engines on a random policy of 0.2 M parameters."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.evaluation import sppo_evaluation
from flows.iteration import sppo_iteration
from flows.status import show_status
from flows.survey import survey
from sppo.errors import GateError, RunError
from sppo.hardware import load_hardware
from sppo.overruling import find_overruling
from sppo.runs import IterationIndex, read_iteration, read_recipe
from sppo.store import Store
from sppo.verify import verify_run

ROOT = Path(__file__).resolve().parents[2]
RUN = "flow-test"
Arguments = dict[str, Any]


@pytest.fixture(scope="module")
def first(small: Arguments) -> IterationIndex:
    """Iteration 1, run once for all tests here."""
    return sppo_iteration(**small, run=RUN, iteration=1, ahead=True)


@pytest.fixture(scope="module")
def store(small: Arguments, first: IterationIndex) -> Store:
    return Store(small["store"])


def manifests(store: Store) -> dict[str, bytes]:
    return {key: store.backend.read(key) or b"" for key in store.backend.list("") if key.endswith("manifest.json")}


def test_an_iteration_makes_every_stage_and_names_it_in_the_index(first: IterationIndex, store: Store) -> None:
    stages = ["policy", "judge", "split", "generate", "rank", "estimate", "train", "evaluate", "check", "score.0"]
    assert list(first.artifacts) == [*stages, "sample.0", "sample.1", "duel.0.0", "duel.1.0"]
    assert first.opened(store, "generate").manifest.counts["prompts"] == 8
    assert first.opened(store, "train").digest != first.opened(store, "policy").digest
    report = json.loads(first.opened(store, "evaluate").text("report.json"))
    assert [judge["judge"] for judge in report["judges"]] == ["pairrm", "world-rule"]


def test_the_load_that_drew_the_held_out_answers_also_drew_the_next_iterations_responses(
    first: IterationIndex, store: Store
) -> None:
    trained = first.opened(store, "train")
    drawn = [json.loads(content) for key, content in manifests(store).items() if key.startswith(("generate/", "sample/"))]
    by_next_policy = [manifest for manifest in drawn if manifest["inputs"]["policy"] == trained.digest]
    assert sorted(manifest["stage"] for manifest in by_next_policy) == ["generate", "sample"]
    assert len({manifest["seconds"] for manifest in by_next_policy}) == 1  # one effort


def test_the_same_iteration_again_does_no_stages_work(small: Arguments, first: IterationIndex, store: Store) -> None:
    before = manifests(store)
    again = sppo_iteration(**small, run=RUN, iteration=1, ahead=True)
    assert again == first
    assert manifests(store) == before


def test_the_command_line_shows_a_finished_run_without_doing_it_again(
    small: Arguments, server: str, first: IterationIndex, store: Store
) -> None:
    before = manifests(store)
    changes = [part for override in small["overrides"] for part in ("--set", override)]
    at = ["--store", small["store"], "--hardware", small["hardware"], "--run", RUN, "--iterations", "1"]
    command = [sys.executable, "-m", "flows.command_line", "run", "tiny", *at, *changes]
    environment = {**os.environ, "PREFECT_API_URL": server}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"run {RUN}: 1 iteration of recipe tiny on hardware one-core, store {small['store']}"
    assert any(line.startswith(f"run {RUN}: held-out win rates") for line in lines)
    assert any(line.startswith("next     sppo status") for line in lines)
    plot = Path(next(line for line in lines if line.startswith("plot")).split(maxsplit=1)[1])
    assert plot.read_bytes().startswith(b"\x89PNG")
    log = Path(lines[-1].removeprefix("log      "))
    assert "Beginning flow run" in log.read_text()
    assert "nothing to do, committed" not in done.stdout
    assert manifests(store) == before


def test_a_deleted_artifact_is_made_again_and_later_stages_are_not_when_its_content_is_the_same(
    small: Arguments, first: IterationIndex, store: Store
) -> None:
    before = manifests(store)
    deleted = first.artifacts["estimate"].reference
    store.backend.delete(f"{deleted}/manifest.json")

    again = sppo_iteration(**small, run=RUN, iteration=1, ahead=True)

    after = manifests(store)
    assert again == first
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] != before[key]] in ([f"{deleted}/manifest.json"], [])  # seconds may agree


def test_the_status_command_sees_the_same_artifacts_as_the_index_and_what_comes_next(
    small: Arguments, first: IterationIndex, store: Store
) -> None:
    hardware = load_hardware(small["hardware"], Path())
    one, two = survey(small["store"], read_recipe(store, RUN), hardware)
    assert one.finished
    assert not two.finished
    assert {f"{stage.stage}/{stage.fingerprint}" for stage in one.stages} == {
        entry.reference for entry in first.artifacts.values()
    }
    assert [(stage.stage, stage.committed) for stage in two.stages[-3:]] == [
        ("generate", True),  # drawn ahead
        ("sample", True),
        ("rank", False),
    ]
    written = StringIO()
    show_status(Console(file=written, width=120), store, RUN)
    assert "not begun" in written.getvalue()
    assert "1 of 2 iterations finished" in written.getvalue()


def test_every_byte_of_the_iteration_verifies(store: Store) -> None:
    assert [verified.problem for verified in verify_run(store, RUN) if verified.problem] == []


def test_a_finished_iteration_is_evaluated_again_with_other_values_and_its_index_stays(
    small: Arguments, first: IterationIndex, store: Store
) -> None:
    [report] = sppo_evaluation(small["hardware"], small["store"], RUN, 1, overrides=("evaluation.resamples=50",))
    [[main], [rule]] = [judge["against"] for judge in report["judges"]]
    indexed = json.loads(first.opened(store, "evaluate").text("report.json"))
    assert main["win_rate"]["mean"] == indexed["judges"][0]["against"][0]["win_rate"]["mean"]  # resamples move intervals only
    assert rule["win_rate"]["n"] == 4
    assert read_iteration(store, RUN, 1) == first


def test_an_evaluation_cannot_change_the_run_itself(small: Arguments, first: IterationIndex) -> None:
    with pytest.raises(RunError, match=r"overriding training\.eta would change run flow-test itself"):
        sppo_evaluation(small["hardware"], small["store"], RUN, 1, overrides=("training.eta=8",))


def test_any_model_is_evaluated_against_the_recipes_own_without_a_run_around_it(
    small: Arguments, first: IterationIndex, store: Store, random_policy: Callable[[str], Path]
) -> None:
    runs = store.backend.list("runs")
    trained = first.artifacts["train"].reference
    models = [trained, str(random_policy("mistral"))]
    one, two = sppo_evaluation(small["hardware"], small["store"], recipe="tiny", models=models, overrides=small["overrides"])
    assert [one["name"], two["name"]] == models
    indexed = json.loads(first.opened(store, "evaluate").text("report.json"))
    assert one["judges"] == indexed["judges"]  # what the run itself found, and nothing of it was done again
    assert one["artifacts"][0] == first.artifacts["evaluate"].reference
    assert [each["iteration"] for each in two["judges"][0]["against"]] == [0, 1]
    assert store.backend.list("runs") == runs


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "cannot evaluate nothing; expected a run, with or without an iteration, or a recipe and models"),
        ({"run": RUN, "models": ["a/b"]}, "cannot evaluate run flow-test, models a/b"),
        ({"recipe": "tiny"}, "recipe tiny and no model to evaluate; expected one or more"),
        (
            {"recipe": "tiny", "models": ["./nowhere"]},
            r"model './nowhere': no such folder on this machine, and no name of the hub",
        ),
    ],
    ids=str,
)
def test_an_evaluation_of_nothing_or_of_two_things_is_refused(small: Arguments, asked: Arguments, said: str) -> None:
    with pytest.raises(RunError, match=said):
        sppo_evaluation(small["hardware"], small["store"], **asked)


def test_an_iteration_that_failed_its_gates_is_kept_and_nothing_follows_it_unless_someone_overrules_them(
    small: Arguments, first: IterationIndex, store: Store, server: str
) -> None:
    gated = small | {"run": "gated", "overrides": tuple(each for each in small["overrides"] if "gates" not in each)}
    with pytest.raises(
        GateError, match=r"run gated stops after iteration 1: gain: .* nothing was gained that 4 prompts can tell"
    ):
        sppo_iteration(**gated, iteration=1)
    index = read_iteration(store, "gated", 1)
    assert index.artifacts["train"] == first.artifacts["train"]
    with pytest.raises(GateError, match="run gated stops after iteration 1"):
        sppo_iteration(**gated, iteration=2)

    changes = [part for override in gated["overrides"] for part in ("--set", override)]
    at = ["--store", small["store"], "--hardware", small["hardware"], "--run", "gated", "--iterations", "1"]
    command = [sys.executable, "-m", "flows.command_line", "run", "tiny", *at, *changes]
    environment = {**os.environ, "PREFECT_API_URL": server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 3
    assert "run gated: held-out win rates" in done.stdout  # what it came to is shown all the same
    assert done.stderr.startswith("sppo: run gated stops after iteration 1: gain: ")

    assert sppo_iteration(**gated, iteration=1, no_gate=True) == index
    found = find_overruling(store, "gated", 1)
    assert found is not None
    assert found.reasons[0].startswith("gain: ")
    assert sppo_iteration(**gated, iteration=1) == index  # said once, it holds


def test_an_iteration_before_its_turn_is_refused(small: Arguments) -> None:
    with pytest.raises(RunError, match="run not-begun has no iteration 1"):
        sppo_iteration(**small, run="not-begun", iteration=2)
