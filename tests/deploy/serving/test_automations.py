"""Automations and triggers on a real server: killed processes, silent runs, notifications, iterations in a row."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Running

from flows.automations import FAILED, LOST, NEVER_RUNS, SILENT, UNHEARD, install
from sppo.errors import LaunchError

NAMES = [SILENT, UNHEARD, LOST, NEVER_RUNS]


@pytest.fixture
def client(laptop: Any) -> Iterator[SyncPrefectClient]:
    with laptop.client() as opened:
        yield opened


@pytest.fixture
def webhook(laptop: Any) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A notification block that calls a listener on loopback: its name, and what was said so far."""
    said: list[dict[str, str]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    listener = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    settings = {PREFECT_API_URL: f"{laptop.served.url}/api", PREFECT_API_AUTH_STRING: laptop.served.password}
    with temporary_settings(settings):
        CustomWebhookNotificationBlock(
            name="listener",
            url=f"http://127.0.0.1:{listener.server_port}/",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        ).save("listener", overwrite=True)
    yield "custom-webhook/listener", said
    listener.shutdown()


def started(client: SyncPrefectClient, folder: Path, patient: int) -> uuid.UUID:
    """A flow run of the probe from a deployment on the pool `cpu`."""
    folder.mkdir()
    deployment = client.create_deployment(
        flow_id=client.create_flow_from_name("sppo-run"),
        name="probe",
        entrypoint="probe.sppo_run",
        work_pool_name="cpu",
        pull_steps=[],
    )
    return client.create_flow_run_from_deployment(deployment, parameters={"folder": str(folder), "patient": patient}).id


def kill(folder: Path, attempt: int) -> None:
    """SIGKILL to the process of this attempt, once it sleeps."""
    mark = folder / str(attempt)
    wait_until(lambda: mark.is_file() and mark.read_text().isdigit())
    time.sleep(1)  # a crash right after the start may overtake it on its way to the automations, which then wait for minutes
    os.kill(int(mark.read_text()), signal.SIGKILL)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Raises TimeoutError if it does not become true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)


def state(client: SyncPrefectClient, flow_run: uuid.UUID) -> str:
    found = client.read_flow_run(flow_run).state
    assert found is not None
    return str(found.name)


def test_a_run_that_lost_its_process_is_resumed_as_often_as_allowed_and_a_person_is_told(
    client: SyncPrefectClient, webhook: tuple[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    block, said = webhook
    assert install(client, notify=block, resumes=1) == [*NAMES, FAILED]
    twice = started(client, tmp_path / "twice", 2)
    kill(tmp_path / "twice", 1)
    wait_until((tmp_path / "twice" / "2").is_file)  # resumed
    once = started(client, tmp_path / "once", 1)
    kill(tmp_path / "twice", 2)
    wait_until(lambda: state(client, twice) == "Crashed")
    kill(tmp_path / "once", 1)  # after the other, and resumed: by then the other would have been as well
    wait_until(lambda: state(client, once) == "Completed")
    assert state(client, twice) == "Crashed"
    assert [client.read_flow_run(flow_run).run_count for flow_run in (once, twice)] == [2, 2]
    assert not (tmp_path / "twice" / "3").exists()
    name = client.read_flow_run(twice).name
    told = {each["body"].splitlines()[0] for each in said if each["subject"] == f"sppo: {name} failed"}
    assert told == {f"{name} is Crashed (attempt 1)", f"{name} is Crashed (attempt 2)"}  # each perhaps more than once


def test_a_run_that_falls_silent_is_marked_crashed(client: SyncPrefectClient, laptop: Any) -> None:
    install(client, notify=None, resumes=0, lost_after_s=10)
    deployment = client.read_deployment_by_name("sppo-run/nightly")
    with paused(client, "cpu"):
        flow_run = client.create_flow_run_from_deployment(deployment.id)
        client.set_flow_run_state(flow_run.id, Running(), force=True)
        _emit(
            laptop,
            "prefect.flow-run.heartbeat",
            {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"},
            related=[
                {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": "sppo-run"}
            ],
        )
        wait_until(lambda: state(client, flow_run.id) == "Crashed")
        found = client.read_flow_run(flow_run.id).state
        assert found is not None
        assert found.message == "No sign of life for 10 s."
        client.delete_flow_run(flow_run.id)


def test_a_cancel_that_nobody_answers_ends(client: SyncPrefectClient) -> None:
    install(client, notify=None, resumes=0, cancelled_after_s=10)
    deployment = client.read_deployment_by_name("sppo-run/nightly")
    with paused(client, "cpu"):
        flow_run = client.create_flow_run_from_deployment(deployment.id)
        client.set_flow_run_state(flow_run.id, Running(), force=True)
        client.set_flow_run_state(flow_run.id, Cancelling())
        wait_until(lambda: state(client, flow_run.id) == "Cancelled")
        client.delete_flow_run(flow_run.id)


def test_installing_again_changes_ours_and_no_others(client: SyncPrefectClient) -> None:
    theirs = AutomationCore(
        name="somebody's", trigger=EventTrigger(expect={"never"}, posture=Posture.Reactive, threshold=1), actions=[DoNothing()]
    )
    kept = client.create_automation(theirs)
    install(client, notify=None, resumes=3)
    before = {each.name: each.id for each in client.read_automations()}
    assert install(client, notify=None, resumes=5) == NAMES
    assert {each.name: each.id for each in client.read_automations()} == before
    (counted,) = client.read_automations_by_name(NEVER_RUNS)
    assert isinstance(counted.trigger, EventTrigger)
    assert counted.trigger.threshold == 21  # five resumes, each counted up to four times, and one more
    install(client, notify=None, resumes=0)
    assert {each.name for each in client.read_automations()} == set(before) - {LOST, NEVER_RUNS}
    client.delete_automation(kept)


def test_a_block_that_is_not_there_is_named(client: SyncPrefectClient) -> None:
    with pytest.raises(LaunchError, match="slack-webhook/nobody"):
        install(client, notify="slack-webhook/nobody", resumes=1)


def test_a_finished_iteration_starts_the_next_one_with_its_parameters_only_if_it_was_told_to(
    client: SyncPrefectClient, laptop: Any
) -> None:
    payload = {"recipe": "tiny", "hardware": "cpu", "run": "chained", "store": "s3://b/s", "overrides": ["training.eta=4"]}
    second = client.read_deployment_by_name("sppo-iteration/iter2")
    with paused(client, "cpu"):
        for chain in ("false", "true"):
            labels = {"prefect.resource.id": "sppo.iteration.chained.1", "sppo.iteration": "1", "sppo.chain": chain}
            _emit(laptop, "sppo.iteration.finished", labels, payload=payload)
        # events are taken in order, so by now the first has started nothing
        wait_until(lambda: bool(_flow_runs(client, second.id)))
        (flow_run,) = _flow_runs(client, second.id)
        assert flow_run.parameters == {**second.parameters, **payload, "chain": True}
        third = client.read_deployment_by_name("sppo-iteration/iter3")
        assert _flow_runs(client, third.id) == []
        client.delete_flow_run(flow_run.id)


@contextmanager
def paused(client: SyncPrefectClient, pool: str) -> Iterator[None]:
    """No worker takes what is scheduled on a pool."""
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    yield
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))


def _flow_runs(client: SyncPrefectClient, deployment: uuid.UUID) -> list[Any]:
    return list(client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))))


def _emit(laptop: Any, event: str, resource: dict[str, str], **more: Any) -> None:
    told = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event, "resource": resource, **more}
    user, password = laptop.served.password.split(":")
    httpx.post(f"{laptop.served.url}/api/events", json=[told], auth=(user, password)).raise_for_status()
