"""Is someone at a run, and can its last flow run be taken up again? Asked of a real server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.states import AwaitingRetry, Completed, Crashed, Pending, Running, Scheduled, State

import flows.resumption
from flows.parameters import dated
from flows.resumption import check_nobody_is_at_it, resume_on_server
from flows.run import sppo_run
from sppo.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
Begin = Callable[..., FlowRun]


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def begin(client: SyncPrefectClient) -> Begin:
    """A flow run of a run, from a deployment or not, in this state."""
    flow_id = client.create_flow_from_name("sppo-run")
    deployment = client.create_deployment(flow_id, "resumption")

    def make(run: str, state: State, deployed: bool = True, scheduled: datetime | None = None) -> FlowRun:
        tags = ["sppo", run]
        if deployed:
            first = Scheduled(scheduled_time=scheduled or datetime.now(UTC) + timedelta(hours=1))
            made = client.create_flow_run_from_deployment(deployment, state=first, tags=tags)
        else:
            made = client.create_flow_run(sppo_run, parameters={}, tags=tags, state=Pending())
        client.set_flow_run_state(made.id, state, force=True)
        return client.read_flow_run(made.id)

    return make


def state_of(client: SyncPrefectClient, flow_run: UUID) -> str:
    return str(client.read_flow_run(flow_run).state_name)


@pytest.mark.parametrize("state", [Running(), Pending(), Scheduled()], ids=lambda state: str(state.name))
def test_a_second_start_is_refused_while_a_flow_run_is_alive(state: State, begin: Begin) -> None:
    run = f"alive-{str(state.name).lower()}"
    living = begin(run, state)
    with pytest.raises(RunError, match=f"run {run} is at work: flow run .*{living.id}.* is {state.name}; .*cancel {living.id}"):
        check_nobody_is_at_it(run)
    with pytest.raises(RunError, match="there is nothing to resume"):
        resume_on_server(run)


def test_flow_runs_of_other_runs_and_ended_ones_do_not_stand_in_the_way(begin: Begin) -> None:
    begin("other", Running())
    begin("mine", Crashed())
    check_nobody_is_at_it("mine")
    check_nobody_is_at_it("never-heard-of")


def test_a_flow_run_that_says_running_and_was_not_heard_of_is_dead(
    begin: Begin, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = begin("silent", Running())
    monkeypatch.setattr(flows.resumption, "BEATS", 0)  # as if three heartbeats' time had passed
    check_nobody_is_at_it("silent")
    resume_on_server("silent")
    assert state_of(client, silent.id) == "AwaitingRetry"


def test_a_heartbeat_is_found_among_the_servers_events(begin: Begin, client: SyncPrefectClient) -> None:
    beating = begin("beating", Running())
    assert flows.resumption._last_heartbeat(client, beating).year == 1970
    emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{beating.id}"})
    deadline = time.monotonic() + 30
    while flows.resumption._last_heartbeat(client, beating).year == 1970 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert (datetime.now(UTC) - flows.resumption._last_heartbeat(client, beating)).total_seconds() < 60


def test_the_last_flow_run_is_scheduled_again_for_its_deployments_workers(begin: Begin, client: SyncPrefectClient) -> None:
    crashed = begin("crashed", Crashed())
    said = resume_on_server("crashed")
    assert str(crashed.id) in said
    assert "was Crashed and is scheduled again" in said
    again = client.read_flow_run(crashed.id)
    assert again.state_name == "AwaitingRetry"
    assert again.next_scheduled_start_time is not None  # what workers look for
    with pytest.raises(RunError, match="is AwaitingRetry; there is nothing to resume"):
        resume_on_server("crashed")


def test_what_no_worker_can_take_up_is_refused_with_the_way_that_can(begin: Begin) -> None:
    begin("here", Crashed(), deployed=False)
    with pytest.raises(RunError, match=r"came from no deployment, so no worker can take it; resume without --on-server"):
        resume_on_server("here")
    begin("over", Completed())
    with pytest.raises(RunError, match="completed; there is nothing to resume"):
        resume_on_server("over")
    with pytest.raises(RunError, match="has no flow run of run nothing"):
        resume_on_server("nothing")


def test_a_dated_run_keeps_its_name_when_its_flow_run_is_retried(begin: Begin, client: SyncPrefectClient) -> None:
    scheduled = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
    first = begin("dated", Crashed(), scheduled=scheduled)
    client.set_flow_run_state(first.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
    client.set_flow_run_state(first.id, Running(), force=True)
    assert client.read_flow_run(first.id).expected_start_time == scheduled  # what {date} is made of


def test_a_run_that_was_stopped_at_the_terminal_is_cancelled_and_can_be_resumed_at_once(
    small: dict[str, Any], server: str, client: SyncPrefectClient
) -> None:
    changes = [part for override in (*small["overrides"], "seed=7") for part in ("--set", override)]
    at = ["--store", small["store"], "--hardware", small["hardware"], "--run", "stopped"]
    command = [sys.executable, "-m", "flows.command_line", "run", "tiny", *at, *changes]
    environment = {**os.environ, "PREFECT_API_URL": server}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as here:
        mine = FlowRunFilter(name=FlowRunFilterName(any_=["stopped · iteration 1"]))
        while not client.read_flow_runs(flow_run_filter=mine):
            assert here.poll() is None, here.communicate()
            time.sleep(0.2)
        here.send_signal(signal.SIGINT)
        _, errors = here.communicate(timeout=60)
    assert here.returncode == 130
    assert "stopped; what was committed is kept: the same command, or `sppo resume`, continues from there" in errors
    [top] = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["stopped"])))
    assert top.state_name == "Cancelled"


def test_without_a_date_a_run_has_the_name_it_was_given() -> None:
    assert dated("demo") == "demo"
