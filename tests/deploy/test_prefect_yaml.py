"""prefect.yaml: every deployment names a flow that exists, with parameters that it takes."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = FILE["deployments"]


def flow_of(deployment: dict[str, Any]) -> Any:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def test_the_deployments_are_three_iterations_the_full_run_and_the_evaluation() -> None:
    names = [f"{flow_of(deployment).name}/{deployment['name']}" for deployment in DEPLOYMENTS]
    iterations = ["sppo-iteration/iter1", "sppo-iteration/iter2", "sppo-iteration/iter3"]
    assert names == [*iterations, "sppo-run/full", "sppo-evaluation/default"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployments_parameters_are_those_of_its_flow(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    assert flow.validate_parameters(deployment["parameters"])
    assert set(flow.parameters.required) <= set(deployment["parameters"])


def test_the_iterations_follow_each_other() -> None:
    assert [deployment["parameters"].get("iteration") for deployment in DEPLOYMENTS[:3]] == [1, 2, 3]
    assert len({deployment["parameters"]["run"] for deployment in DEPLOYMENTS}) == 1


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_the_store_is_named_by_the_environment_and_no_file_of_flows_is_first_on_the_path(deployment: dict[str, Any]) -> None:
    assert deployment["parameters"]["store"] == "{{ $SPPO_STORE }}"
    assert ".py:" not in deployment["entrypoint"]
