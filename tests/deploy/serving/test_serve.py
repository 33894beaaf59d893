"""`make serve` and `make stop`, for real: a server behind a password, pools, deployments and workers, once and no more."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import background
from flows.serving import serve, stop
from sppo.errors import LaunchError

ROOT = Path(__file__).resolve().parents[3]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
PROCESSES = ("server", "cpu-1", "gpu-1", "gpu-2")


def pids(laptop: Any) -> dict[str, int]:
    return {name: process.pid for name, process in background.alive(laptop.served.folder).items()}


def test_one_call_started_a_server_and_workers_of_both_pools(laptop: Any) -> None:
    assert laptop.served.started == PROCESSES
    assert laptop.served.found == ()
    with laptop.client() as client:
        online = [worker for pool in ("cpu", "gpu") for worker in client.read_workers_for_work_pool(pool)]
    assert sorted((worker.name, worker.status.value) for worker in online) == [
        ("cpu-1", "ONLINE"),
        ("gpu-1", "ONLINE"),
        ("gpu-2", "ONLINE"),
    ]


def test_the_server_answers_on_loopback_and_only_with_the_password(laptop: Any) -> None:
    asked = f"{laptop.served.url}/api/flows/filter"
    assert laptop.served.url.startswith("http://127.0.0.1:")
    assert httpx.post(asked, json={}).status_code == 401
    user, password = laptop.served.password.split(":")
    assert httpx.post(asked, json={}, auth=(user, "wrong")).status_code == 401
    assert httpx.post(asked, json={}, auth=(user, password)).status_code == 200
    listening = {
        connection.laddr.ip
        for process in background.with_children(psutil.Process(pids(laptop)["server"]))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_all_of_prefect_yaml_is_deployed_with_this_machines_store_and_the_schedule_is_paused(laptop: Any) -> None:
    with laptop.client() as client:
        deployed = {deployment.name: deployment for deployment in client.read_deployments()}
    assert {each["name"] for each in DEPLOYMENTS} <= set(deployed)
    assert deployed["iter1"].parameters["store"] == str(laptop.root / "var" / "store")
    (schedule,) = deployed["nightly"].schedules
    assert not schedule.active


def test_a_shell_that_reads_the_environment_file_reaches_the_server(laptop: Any) -> None:
    path = laptop.served.folder / "environment"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = subprocess.check_output(["sh", "-c", f". {path} && prefect work-pool ls"], text=True, env={"PATH": "/usr/bin:/bin"})
    assert "cpu" in said
    assert "gpu" in said


def test_a_second_call_finds_everything_and_leaves_a_persons_choices_alone(laptop: Any) -> None:
    before = pids(laptop)
    with laptop.client() as client:
        nightly = client.read_deployment_by_name("sppo-run/nightly")
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=True)
    again = serve(laptop.root, gpu_workers=2)
    assert (again.started, set(again.found)) == ((), set(PROCESSES))
    assert (again.url, again.password) == (laptop.served.url, laptop.served.password)
    assert pids(laptop) == before
    with laptop.client() as client:
        assert client.read_deployment_by_name("sppo-run/nightly").schedules[0].active


def test_a_worker_that_died_is_started_again_and_nothing_else(laptop: Any) -> None:
    before = pids(laptop)
    killed = psutil.Process(before["gpu-2"])
    killed.kill()
    killed.wait(30)  # a signal is on its way before it has arrived: serve would still find the worker
    again = serve(laptop.root, gpu_workers=2)
    assert again.started == ("gpu-2",)
    after = pids(laptop)
    assert after.pop("gpu-2") != before.pop("gpu-2")
    assert after == before


def test_another_store_is_refused_while_this_one_is_served(laptop: Any) -> None:
    with pytest.raises(LaunchError, match="make stop"):
        serve(laptop.root, store="s3://another/store")


def test_stop_ends_those_and_no_others_and_a_new_start_has_the_same_address_and_password(laptop: Any) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    below = background.bearing_mark(laptop.served.folder)
    assert set(pids(laptop).values()) <= {process.pid for process in below}
    assert stop(laptop.root) == len(below)
    assert not any(process.is_running() for process in below)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert stop(laptop.root) == 0
    again = serve(laptop.root, gpu_workers=2)
    assert again.started == PROCESSES
    assert (again.url, again.password) == (laptop.served.url, laptop.served.password)
