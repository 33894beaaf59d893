"""prefect.yaml: every deployment names a flow that exists, with parameters that it takes, on a pool that there is."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule

from sppo.hardware import load_hardware

ROOT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = FILE["deployments"]
STAGES = ["generate", "sample", "rank", "duel", "score", "harness", "train", "alpaca-answer", "alpaca-judge"]
ORCHESTRATING = [deployment for deployment in DEPLOYMENTS if deployment["name"] not in STAGES]


def flow_of(deployment: dict[str, Any]) -> Any:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def named(name: str) -> dict[str, Any]:
    return next(deployment for deployment in DEPLOYMENTS if deployment["name"] == name)


def ids(deployment: dict[str, Any]) -> str:
    return str(deployment["name"])


def test_the_deployments_are_iterations_runs_the_evaluation_and_the_heavy_stages() -> None:
    names = [f"{flow_of(deployment).name}/{deployment['name']}" for deployment in DEPLOYMENTS]
    iterations = ["sppo-iteration/iter1", "sppo-iteration/iter2", "sppo-iteration/iter3"]
    runs = ["sppo-run/full", "sppo-run/nightly", "sppo-evaluation/default", "sppo-evaluation/models"]
    assert names == [*iterations, *runs, *(f"sppo-stage/{stage}" for stage in STAGES)]


@pytest.mark.parametrize("deployment", ORCHESTRATING, ids=ids)
def test_the_parameters_of_what_a_person_starts_are_complete(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    assert flow.validate_parameters(deployment["parameters"])
    assert set(flow.parameters.required) <= set(deployment["parameters"])


@pytest.mark.parametrize("deployment", ORCHESTRATING, ids=ids)
def test_flows_wait_on_the_pool_cpu_one_at_a_time_and_send_heavy_stages_to_the_pool_gpu(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"] == {"name": "cpu"}
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert deployment["tags"] == ["sppo"]
    hardware = load_hardware(deployment["parameters"]["hardware"], ROOT / "deployments" / "hardware")
    assert hardware.pool is not None
    assert hardware.pool.name == "gpu"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_on_the_pool_gpu_and_gets_its_job_from_the_flow_that_starts_it(stage: str) -> None:
    deployment = named(stage)
    assert deployment["work_pool"] == {"name": "gpu"}
    assert deployment["tags"] == ["stage"]
    assert set(deployment["parameters"]) == {"store"}
    assert "concurrency_limit" not in deployment  # as many as there are workers


def test_the_iterations_follow_each_other() -> None:
    assert [deployment["parameters"].get("iteration") for deployment in DEPLOYMENTS[:3]] == [1, 2, 3]
    assert len({deployment["parameters"]["run"] for deployment in DEPLOYMENTS[:4]}) == 1


@pytest.mark.parametrize(("name", "before"), [("iter2", "1"), ("iter3", "2")])
def test_an_iteration_is_started_by_the_one_before_only_if_that_was_told_to_go_on(name: str, before: str) -> None:
    (trigger,) = named(name)["triggers"]
    assert trigger["expect"] == ["sppo.iteration.finished"]
    assert trigger["match"] == {"sppo.chain": "true", "sppo.iteration": before}
    assert set(trigger["parameters"]) == {"recipe", "hardware", "run", "store", "overrides", "chain"}
    assert "triggers" not in named("iter1")


def test_the_nightly_run_is_paused_has_a_time_zone_and_a_name_of_its_own_each_night() -> None:
    nightly = named("nightly")
    assert nightly["parameters"]["run"] == "nightly-{date}"
    assert nightly["parameters"]["start"] == "published"
    (schedule,) = nightly["schedules"]
    assert schedule["active"] is False
    assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=ids)
def test_the_store_is_named_by_the_environment_and_no_file_of_flows_is_first_on_the_path(deployment: dict[str, Any]) -> None:
    assert deployment["parameters"]["store"] == "{{ $SPPO_STORE }}"
    assert ".py:" not in deployment["entrypoint"]
