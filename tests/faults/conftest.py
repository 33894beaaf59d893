"""Labs: an S3 server behind a fault proxy, or folders; ready interpreters; a random policy and judge."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # faults/ is no package of the installation

from faults.labs import FileLab, RequestLab
from faults.proxy import PATIENCE_S, FaultProxy
from faults.starts import Client
from faults.workload import HARDWARE

from infra.local_s3 import missing_programs

AT_ONCE = 4 if os.environ.get("SPPO_SOAK") else 2
"""Cases at a time: much of each is waiting."""


@dataclass(frozen=True)
class Server:
    """A real S3 server, or a mock where none is installed."""

    url: str
    environment: dict[str, str]
    s3: Any
    """A plain client of it, past any proxy."""
    bucket: str


@pytest.fixture(scope="session")
def fault_server(request: pytest.FixtureRequest) -> Server:
    """Ceph's gateway; where it is not installed and nobody insists (CI does), moto."""
    import boto3

    if missing_programs() and not os.environ.get("CI"):
        url = request.getfixturevalue("s3_server")
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    else:
        server = request.getfixturevalue("ceph_server")
        url, keys = server.endpoint_url, {**server.environment}
    session = boto3.Session(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name=keys["AWS_DEFAULT_REGION"])
    s3 = session.client("s3", endpoint_url=url)
    s3.create_bucket(Bucket="faults")
    return Server(url, keys, s3, "faults")


@pytest.fixture(scope="session")
def fault_world(
    tmp_path_factory: pytest.TempPathFactory, random_policy: Callable[[str], Path], random_judge: Path
) -> dict[str, str]:
    """What the iteration starts from."""
    hardware = tmp_path_factory.mktemp("hardware") / "one-core.yaml"
    hardware.write_text(HARDWARE)
    return {"policy": str(random_policy("llama")), "judge": str(random_judge), "hardware": str(hardware)}


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Client]]:
    """Interpreters that have imported everything."""
    folder = tmp_path_factory.mktemp("clients")
    made = [Client(folder / str(number)) for number in range(AT_ONCE)]
    for client in made:
        client.wait_until_ready()
    yield made
    for client in made:
        client.close()


@pytest.fixture
def request_labs(
    fault_server: Server, fault_world: dict[str, str], clients: list[Client], tmp_path: Path
) -> Iterator[Callable[[str], list[RequestLab]]]:
    """Labs of a pipeline on S3, each with a proxy of its own."""
    with ExitStack() as open_proxies:

        def make(pipeline: str) -> list[RequestLab]:
            labs = []
            for number, client in enumerate(clients):
                proxy = open_proxies.enter_context(FaultProxy(fault_server.url))
                environment = {**fault_server.environment, "AWS_ENDPOINT_URL": proxy.url}
                environment["SPPO_STORE_TIMEOUT_S"] = str(PATIENCE_S)
                folder = tmp_path / f"{pipeline}-{number}"
                folder.mkdir()
                at = (fault_server.s3, f"s3://{fault_server.bucket}/{tmp_path.name}")
                labs.append(RequestLab(pipeline, folder, fault_world, client, environment, proxy, *at))
            return labs

        yield make


@pytest.fixture
def file_labs(fault_world: dict[str, str], clients: list[Client], tmp_path: Path) -> Callable[[str], list[FileLab]]:
    """Labs of a pipeline on folders."""

    def make(pipeline: str) -> list[FileLab]:
        labs = []
        for number, client in enumerate(clients):
            folder = tmp_path / f"{pipeline}-{number}"
            folder.mkdir()
            labs.append(FileLab(pipeline, folder, fault_world, client, {}))
        return labs

    return make
