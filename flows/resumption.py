"""Flow runs of a run, as the configured Prefect server knows them: is one alive, and can one be taken up again?

A run's flow runs carry its name as a tag. A flow run whose worker died with it stays Running for ever: only heartbeats tell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sppo.errors import RunError
from sppo.secrecy import without_secrets

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

BEATS = 3
"""Heartbeats that a living flow run may miss."""


def check_nobody_is_at_it(run: str) -> None:
    """Raises RunError naming the flow run that is at work on a run, or about to be; without a configured server, never."""
    with _server() as client:
        if client is None:
            return
        newest = _newest_first(client, run)
        for flow_run in newest:
            if _is_alive(client, flow_run):
                raise RunError(
                    f"run {run} is at work: flow run {_named(flow_run)} is {flow_run.state_name}; "
                    f"wait for it, or end it first: prefect flow-run cancel {flow_run.id}"
                )


def resume_on_server(run: str) -> str:
    """Schedule a run's last flow run again, for its deployment's workers; says which.

    Raises RunError if no server is configured, the flow run is alive or done, or came from no deployment."""
    from prefect.states import AwaitingRetry

    with _server() as client:
        if client is None:
            raise RunError("no Prefect server is configured; set PREFECT_API_URL, or resume here without --on-server")
        newest = _newest_first(client, run)
        if not newest:
            where = without_secrets(str(client.api_url))
            raise RunError(f"the Prefect server at {where} has no flow run of run {run}; resume without --on-server")
        last = newest[0]
        if _is_alive(client, last):
            raise RunError(f"run {run} is at work: flow run {_named(last)} is {last.state_name}; there is nothing to resume")
        if last.state is not None and last.state.is_completed():
            raise RunError(f"the last flow run of run {run}, {_named(last)}, completed; there is nothing to resume")
        if last.deployment_id is None:
            raise RunError(
                f"the last flow run of run {run}, {_named(last)}, came from no deployment, so no worker can take it; "
                "resume without --on-server"
            )
        # force: a terminal state else refuses every other
        client.set_flow_run_state(last.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
        return f"flow run {_named(last)} was {last.state_name} and is scheduled again, for the next worker that is free"


@contextmanager
def _server() -> "Iterator[SyncPrefectClient | None]":
    """A client of the configured server; None if none is. Raises RunError if it does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        yield None
        return
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError) as problem:
        raise RunError(
            f"the Prefect server at {without_secrets(url)} cannot be asked about the run: "
            f"{without_secrets(' '.join(str(problem).split()))[:200]}; start it, or unset PREFECT_API_URL to go on without it"
        ) from problem


def _newest_first(client: "SyncPrefectClient", run: str) -> "list[FlowRun]":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.client.schemas.sorting import FlowRunSort

    mine = FlowRunFilter(tags=FlowRunFilterTags(all_=["sppo", run]))
    found = client.read_flow_runs(flow_run_filter=mine, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=100)
    return [flow_run for flow_run in found if flow_run.parent_task_run_id is None]


def _is_alive(client: "SyncPrefectClient", flow_run: "FlowRun") -> bool:
    """Whether a flow run is at work or will be; one that runs has to have shown it of late."""
    from prefect.settings import get_current_settings

    state = flow_run.state
    if state is None or not state.is_running():
        return state is not None and not state.is_final()
    frequency = get_current_settings().flows.heartbeat_frequency
    if frequency is None:
        return True
    last = max(_last_heartbeat(client, flow_run), state.timestamp)
    return (datetime.now(UTC) - last).total_seconds() < BEATS * frequency


def _last_heartbeat(client: "SyncPrefectClient", flow_run: "FlowRun") -> datetime:
    from prefect.events.filters import EventFilter, EventNameFilter, EventOrder, EventResourceFilter

    beats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{flow_run.id}"]),
        order=EventOrder.DESC,
    )
    events = client.read_events(beats, limit=1).events
    return events[0].occurred if events else datetime.fromtimestamp(0, UTC)


def _named(flow_run: "FlowRun") -> str:
    return f"{flow_run.name!r} ({flow_run.id})"
