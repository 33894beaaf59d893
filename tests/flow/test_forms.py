"""What the server knows of the flows' parameters: the forms it shows, and what it refuses before a worker is asked for."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from flows.evaluation import sppo_evaluation
from flows.run import sppo_run

GOOD = {"recipe": "tiny", "hardware": "cpu", "run": "demo", "store": "s3://bucket/runs"}


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def deployment(client: SyncPrefectClient) -> UUID:
    flow_id = client.create_flow_from_name(sppo_run.name)
    schema = sppo_run.parameters.model_dump_for_openapi()
    return client.create_deployment(flow_id, "forms", parameter_openapi_schema=schema, enforce_parameter_schema=True)


def test_every_parameter_has_a_title_a_description_and_its_choices() -> None:
    for flow in (sppo_run, sppo_evaluation):
        for name, told in flow.parameters.model_dump_for_openapi()["properties"].items():
            assert told["title"][0].isupper(), name
            assert len(told["description"]) > 10, name
    properties = sppo_run.parameters.model_dump_for_openapi()["properties"]
    assert properties["recipe"]["enum"][-1] == "tiny"
    assert {"cpu", "1xh100", "8xa100"} <= set(properties["hardware"]["enum"])
    assert properties["start"]["enum"] == ["base", "published"]
    assert sppo_run.parameters.required == ["recipe", "hardware", "run", "store"]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "gemma-2-9b-it", "hardware": "8xa100"},
        {"run": "nightly-{date}", "start": "published", "store": "block/main"},
        {"iterations": 2, "overrides": ["training.eta=4", "policy.source={kind: folder, path: /models/mine}"]},
        {"iterations": None},
    ],
)
def test_the_server_takes_what_a_run_can_use(change: dict[str, Any], client: SyncPrefectClient, deployment: UUID) -> None:
    made = client.create_flow_run_from_deployment(deployment, parameters=GOOD | change)
    client.delete_flow_run(made.id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "tyni"}, "'tyni' is not one of"),
        ({"recipe": ""}, "'' is not one of"),
        ({"hardware": "tpu"}, "'tpu' is not one of"),
        ({"run": "Tiny"}, "does not match"),
        ({"run": "../x"}, "does not match"),
        ({"run": "nightly-{day}"}, "does not match"),
        ({"run": ""}, "does not match"),
        ({"store": ""}, "non-empty"),
        ({"iterations": 0}, "less than the minimum of 1"),
        ({"start": "beginning"}, "'beginning' is not one of"),
        ({"overrides": ["training.eta"]}, "does not match"),
        ({"overrides": "training.eta=4"}, "is not of type 'array'"),
    ],
    ids=str,
)
def test_the_server_refuses_the_rest_before_a_worker_is_asked_for(
    change: dict[str, Any], said: str, client: SyncPrefectClient, deployment: UUID
) -> None:
    with pytest.raises(PrefectHTTPStatusError) as refused:
        client.create_flow_run_from_deployment(deployment, parameters=GOOD | change)
    assert refused.value.response.status_code == 409
    assert said in refused.value.response.json()["detail"]


def test_in_process_a_flow_takes_a_path_as_well() -> None:
    given = {**GOOD, "recipe": "mine/own.yaml", "hardware": "mine/box.yaml"}
    assert sppo_run.validate_parameters(given)["recipe"] == "mine/own.yaml"
