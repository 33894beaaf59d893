"""Deployments as a person uses them: typed, on a schedule, one after the other, resumed when they failed."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from sppo.publication import publish
from sppo.recipe import StoredModel
from sppo.runs import find_iteration, read_iteration, read_recipe, run_names
from sppo.store import Store

Machine = Any
SMALL = {"recipe": "small", "hardware": "one-core"}


def watched(machine: Machine, deployment: str, *parameters: str) -> Any:
    words = [word for parameter in parameters for word in ("--param", parameter)]
    return machine.type("prefect", "--no-prompt", "deployment", "run", deployment, *words, "--watch", timeout_s=700)


def manifests(store: Store) -> dict[str, bytes | None]:
    return {key: store.backend.read(key) for key in store.backend.list("") if key.endswith("manifest.json")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tiny_recipe_goes_through_two_iterations_on_the_pool_and_its_artifacts_are_in_the_bucket(machine: Machine) -> None:
    for deployment in ("sppo-iteration/iter1", "sppo-iteration/iter2"):
        done = watched(machine, deployment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "finished successfully" in done.stdout
    second = read_iteration(machine.store, "tiny", 2)
    report = json.loads(second.opened(machine.store, "evaluate").text("report.json"))
    [against_base, against_previous] = [each["win_rate"]["mean"] for each in report["judges"][0]["against"]]
    assert against_base > against_previous > 0.5
    assert report["judges"][0]["against"][0]["win_rate"]["low"] > 0.6

    before = manifests(machine.store)
    started = time.monotonic()
    assert watched(machine, "sppo-iteration/iter2").returncode == 0
    assert time.monotonic() - started < 60  # a worker's start and looking; no stage's work
    assert manifests(machine.store) == before


@pytest.fixture(scope="module")
def finished(machine: Machine) -> str:
    """Iteration 1 of a small run, from a deployment. Gives the flow run's id."""
    flow_run: str = machine.start("sppo-iteration/iter1", **SMALL, run="resumed")
    machine.wait(flow_run, "COMPLETED")
    return flow_run


def test_names_and_tags_say_what_a_flow_run_is(machine: Machine, finished: str) -> None:
    with machine.client() as client:
        run = client.read_flow_run(UUID(finished))
    assert run.name == "resumed · iteration 1"
    assert {"sppo", "resumed"} <= set(run.tags)


def test_an_unknown_recipe_is_refused_before_a_worker_is_asked_for(machine: Machine) -> None:
    done = machine.type("prefect", "--no-prompt", "deployment", "run", "sppo-iteration/iter1", "--param", "recipe=gemma-9")
    assert done.returncode != 0
    assert "gemma-9" in done.stdout + done.stderr
    assert "gemma-2-9b-it" in done.stdout + done.stderr  # what there is


def test_an_iteration_before_its_turn_says_how_to_get_the_one_before(machine: Machine) -> None:
    flow_run = machine.start("sppo-iteration/iter2", **SMALL, run="too-early")
    machine.wait(flow_run, "FAILED")
    log = machine.log(flow_run)
    assert "run too-early has no iteration 1 in the store at s3://sppo-machine/store" in log
    assert "sppo run small --run too-early --iterations 1" in log
    assert "Traceback" not in log.split("has no iteration 1")[0].rsplit("|", 1)[-1]


def by_retry(machine: Machine, flow_run: str) -> str:
    """What the UI's Retry does."""
    machine.prefect("flow-run", "retry", flow_run)
    return flow_run


def by_running_again(machine: Machine, flow_run: str) -> str:
    started: str = machine.start("sppo-iteration/iter1", **SMALL, run="resumed")
    return started


def by_sppo_resume(machine: Machine, flow_run: str) -> str:
    done = machine.sppo("resume", "resumed", "--store", machine.store.url, "--hardware", "one-core", "--iterations", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank: 160 prompts" in done.stdout
    return ""


@pytest.mark.parametrize("resume", [by_retry, by_running_again, by_sppo_resume], ids=lambda way: way.__name__)
def test_a_run_that_failed_on_a_damaged_artifact_is_resumed_and_only_that_artifact_is_made_again(
    machine: Machine, finished: str, resume: Callable[[Machine, str], str]
) -> None:
    store = machine.store
    index = read_iteration(store, "resumed", 1)
    before = manifests(store)
    reference = index.artifacts["rank"].reference
    damaged = next(key for key in store.backend.list(reference) if key.endswith("chunk-00002.parquet"))
    good = store.backend.read(damaged)
    store.backend.replace(damaged, good[:100] + bytes([good[100] ^ 1]) + good[101:])
    store.backend.delete(f"{index.artifacts['estimate'].reference}/manifest.json")  # so that somebody reads it
    for copy in (store.scratch / "objects").glob("*"):
        copy.unlink()  # copies on this machine are good: the store is meant
    failed = machine.start("sppo-iteration/iter1", **SMALL, run="resumed")
    machine.wait(failed, "FAILED")
    log = machine.log(failed)
    assert damaged.rsplit("/", 1)[0] in log
    assert f"delete the folder {reference} of the store and run again" in log

    for key in store.backend.list(reference):
        store.backend.delete(key)
    again = resume(machine, failed)
    if again:
        machine.wait(again, "COMPLETED")

    assert read_iteration(store, "resumed", 1) == index
    after = manifests(store)
    assert after.keys() == before.keys()
    changed = {key.split("/")[0] for key in after if after[key] != before[key]}
    assert changed <= {"rank", "estimate"}


def test_a_store_is_named_by_a_block_and_its_keys_are_in_no_parameter(machine: Machine, finished: str) -> None:
    machine.prefect("block", "register", "-m", "flows.blocks")
    code = (
        "import os\nfrom flows.blocks import SppoStore\n"
        f"SppoStore(url={machine.store.url!r}, endpoint_url=os.environ['AWS_ENDPOINT_URL'], "
        "access_key_id=os.environ['AWS_ACCESS_KEY_ID'], secret_access_key=os.environ['AWS_SECRET_ACCESS_KEY'])"
        ".save('ours', overwrite=True, _sync=True)"
    )
    done = machine.type(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    flow_run = machine.start("sppo-iteration/iter1", **SMALL, run="resumed", store="block/ours")
    machine.wait(flow_run, "COMPLETED")
    with machine.client() as client:
        told = client.read_flow_run(UUID(flow_run)).model_dump_json()
    assert "block/ours" in told
    assert machine.environment["AWS_SECRET_ACCESS_KEY"] not in told
    assert machine.environment["AWS_SECRET_ACCESS_KEY"] not in machine.log(flow_run)


def test_iterations_follow_each_other_only_when_asked(machine: Machine, finished: str) -> None:
    assert find_iteration(machine.store, "resumed", 2) is None  # many runs of iteration 1, none of which asked
    flow_run = machine.start("sppo-iteration/iter1", **SMALL, run="resumed", chain=True)
    machine.wait(flow_run, "COMPLETED")
    deadline = time.monotonic() + 180
    while find_iteration(machine.store, "resumed", 2) is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_schedule_fires_a_run_of_its_own_name_from_the_published_policy(machine: Machine, finished: str) -> None:
    published = publish(machine.store, "resumed", 1)
    before = set(run_names(machine.store))
    soon = datetime.fromtimestamp(time.time() + 15, UTC)  # the scheduler looks every few seconds
    with machine.client() as client:
        nightly = client.read_deployment_by_name("sppo-run/nightly")
        [schedule] = nightly.schedules
        assert (schedule.active, schedule.schedule.cron) == (False, "0 2 * * *")  # paused until somebody turns it on
        changes = {
            "active": True,
            "schedule": {"interval": 86400, "anchor_date": soon.isoformat()},  # tonight is now
            "parameters": {**SMALL, "iterations": 1},
        }
        client.request("PATCH", f"/deployments/{nightly.id}/schedules/{schedule.id}", json=changes).raise_for_status()
    deadline = time.monotonic() + 180
    while not (new := set(run_names(machine.store)) - before) or find_iteration(machine.store, min(new), 1) is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    [name] = new
    assert name == soon.strftime("nightly-%Y%m%d-%H%M")
    assert read_recipe(machine.store, name).policy.source == StoredModel(
        kind="stored", artifact=published.policy.reference, digest=published.policy.digest
    )
