"""Branching, publishing and going on with runs, as flows on a real Prefect server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Crashed

import sppo.branch
from flows.local_run import resume_here
from flows.run import sppo_run
from flows.status import resume_words
from flows.survey import survey
from sppo.errors import RunError
from sppo.hardware import load_hardware
from sppo.last_start import find_last_start
from sppo.publication import publish
from sppo.recipe import overridden
from sppo.report import RunReport
from sppo.runs import finished_iterations, read_iteration, read_recipe
from sppo.store import Store

ROOT = Path(__file__).resolve().parents[2]
Arguments = dict[str, Any]


@pytest.fixture(scope="module")
def store(small: Arguments) -> Store:
    return Store(small["store"])


@pytest.fixture(scope="module")
def started(small: Arguments) -> RunReport:
    """Run `first`, of which iteration 1 of 2 is done."""
    return sppo_run(**small, run="first", iterations=1)


@pytest.fixture(scope="module")
def branched(small: Arguments, store: Store, started: RunReport) -> RunReport:
    """Run `second`: iteration 1 of run `first`, then another recipe."""
    other = overridden(read_recipe(store, "first"), ("training.eta=4", "name=other"))
    sppo.branch.branch(store, "first", 1, other, "second", lambda recipe: recipe)
    return sppo_run("", small["hardware"], "second", small["store"])


def manifests(store: Store) -> dict[str, bytes]:
    return {key: store.backend.read(key) or b"" for key in store.backend.list("") if key.endswith("manifest.json")}


def test_a_branch_goes_on_from_the_shared_iteration_and_makes_nothing_of_it_again(branched: RunReport, store: Store) -> None:
    assert [each.iteration for each in branched.iterations] == [1, 2]
    first, second = finished_iterations(store, "second")
    assert first.artifacts == read_iteration(store, "first", 1).artifacts
    assert second.artifacts["sample.0"] == first.artifacts["sample.0"]
    made = second.opened(store, "train").manifest
    assert made.recipe["training"]["eta"] == 4
    assert made.inputs["policy"] == first.artifacts["train"].digest
    assert [row["judge"] for row in _judges(store)] == ["pairrm", "world-rule"]


def _judges(store: Store) -> list[dict[str, Any]]:
    report = json.loads(read_iteration(store, "second", 2).opened(store, "evaluate").text("report.json"))
    return list(report["judges"])


def test_a_branch_shares_its_responses_with_the_run_it_left_and_not_what_it_trained(
    small: Arguments, branched: RunReport, store: Store
) -> None:
    sppo_run(**small, run="first")
    one, other = read_iteration(store, "first", 2), read_iteration(store, "second", 2)
    for stage in ("generate", "rank", "estimate", "sample.1"):
        assert one.artifacts[stage] == other.artifacts[stage]
    assert one.artifacts["train"].digest != other.artifacts["train"].digest


def test_a_finished_branch_is_surveyed_as_finished(small: Arguments, branched: RunReport, store: Store) -> None:
    hardware = load_hardware(small["hardware"], Path())
    states = survey(store.url, read_recipe(store, "second"), hardware, finished_iterations(store, "second"))
    assert [state.finished for state in states] == [True, True]
    assert resume_words(states, 2).startswith("nothing to do")


def test_a_run_from_the_published_policy_takes_the_stored_weights_as_its_base(
    small: Arguments, started: RunReport, store: Store
) -> None:
    published = publish(store, "first", 1)
    own = tuple(each for each in small["overrides"] if not each.startswith("policy.source="))
    report = sppo_run("tiny", small["hardware"], "nightly-{date}", small["store"], 1, "published", own)

    name = report.run
    assert name.startswith("nightly-20")
    assert len(name) == len("nightly-20261122-0300")
    index = read_iteration(store, name, 1)
    assert index.artifacts["policy"] == published.policy
    assert index.opened(store, "generate").manifest.inputs["policy"] == published.policy.digest
    assert not [key for key in store.backend.list("policy") if published.policy.reference.split("/")[1] in key]


def test_a_run_is_resumed_by_its_name_alone(small: Arguments, server: str, started: RunReport, store: Store) -> None:
    before = manifests(store)
    last = find_last_start(store, "first")
    assert last is not None
    assert last.hardware == small["hardware"]
    command = [sys.executable, "-m", "flows.command_line", "resume", "first", "--store", small["store"], "--iterations", "1"]
    environment = {**os.environ, "PREFECT_API_URL": server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run first: 1 iteration of recipe tiny on hardware one-core")
    assert "sppo resume" not in done.stdout
    assert manifests(store) == before


def test_a_crashed_flow_run_is_taken_up_again_by_its_deployments_worker(
    small: Arguments, server: str, prefect: Callable[..., str], started: RunReport, store: Store
) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="taking-up", type="process"))
        deployment = client.create_deployment(
            client.create_flow_from_name("sppo-run"),
            "taking-up",
            entrypoint="flows.run.sppo_run",
            work_pool_name="taking-up",
            parameters={**small, "overrides": list(small["overrides"]), "run": "taken-up", "iterations": 1},
        )
        crashed = client.create_flow_run_from_deployment(deployment, tags=["sppo", "taken-up"])
        client.set_flow_run_state(crashed.id, Crashed(), force=True)
        before = manifests(store)

        command = [sys.executable, "-m", "flows.command_line", "resume", "taken-up", "--store", small["store"], "--on-server"]
        done = subprocess.run(command, env={**os.environ, "PREFECT_API_URL": server}, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        prefect("worker", "start", "--pool", "taking-up", "--run-once")

        again = client.read_flow_run(crashed.id)
        assert (again.state_name, again.name) == ("Completed", "taken-up")
        last = find_last_start(store, "taken-up")
        assert last is not None
        assert last.by == f"deployment sppo-run/taking-up, flow run {crashed.id}"
    assert manifests(store) == before


def test_a_run_that_was_only_branched_has_to_be_told_its_hardware(store: Store, started: RunReport) -> None:
    sppo.branch.branch(store, "first", 1, read_recipe(store, "first"), "third", lambda recipe: recipe)
    with pytest.raises(RunError, match="run third does not say on which hardware it was started"):
        resume_here("third", store.url, None, None)
