"""The flow runs that work for another: how they are found on the server, and ended.

A child carries the tags `stage`, its run's name and what it makes; its parameters say for whom.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Cancelled, Cancelling

from sppo.errors import LaunchError
from sppo.secrecy import without_secrets

CHILD = "stage"
"""Tag of all children: automations leave them alone."""
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]


@contextmanager
def asked_once() -> Iterator[None]:
    """For who asks again and again by itself: Prefect's client would sleep between its attempts, for minutes after a long
    outage."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """The server. Raises LaunchError, which is tried again, if it does not answer for as long as the client asks."""
    where = get_current_settings().api.url
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as problem:
        said = str(problem).partition("\n")[0] or type(problem).__name__
        raise LaunchError(
            f"the Prefect server{f' at {without_secrets(where)}' if where else ''} does not answer: {without_secrets(said)}; "
            "see that it runs and that PREFECT_API_URL and PREFECT_API_AUTH_STRING are its own, then run again: "
            "what is committed is kept"
        ) from problem


def children_of(client: SyncPrefectClient, stage: str, fingerprint: str) -> list[FlowRun]:
    """All that ever worked on an artifact, for whichever run."""
    return client.read_flow_runs(flow_run_filter=_filter([CHILD, tag(stage, fingerprint)]))


def under_way(client: SyncPrefectClient, stage: str, fingerprint: str) -> list[FlowRun]:
    """Children that make an artifact and are not over."""
    return [run for run in children_of(client, stage, fingerprint) if not is_over(run)]


def is_wanted(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run that a child works for goes on."""
    parent = run.parameters.get("parent")
    return parent is None or not is_over(client.read_flow_run(UUID(parent)))


def is_over(run: FlowRun) -> bool:
    """Whether a flow run is in its last state."""
    return run.state is not None and run.state.is_final()


def state_of(run: FlowRun) -> StateType | None:
    """Type of a flow run's state."""
    return None if run.state is None else run.state.type


def shared_among(run: FlowRun) -> int:
    """m of a job's `n-of-m`."""
    name = str(run.parameters.get("job")).rsplit("/", 1)[-1]
    return int(name.removesuffix(".job.json").rpartition("-of-")[2])


def cancel_children(parent: str) -> None:
    """Cancel all that works for a run, at work or waiting for a worker."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=_filter([CHILD], UNFINISHED))
        cancel(
            client, (run for run in runs if run.parameters.get("parent") == parent), "the run that it works for was cancelled"
        )


def cancel(client: SyncPrefectClient, runs: Iterable[FlowRun], why: str) -> None:
    """Cancel flow runs that are not over: at once where no worker has one yet, else through its worker and its watcher."""
    for run in runs:
        if not is_over(client.read_flow_run(run.id)):
            begun = run.state is not None and not run.state.is_scheduled()
            client.set_flow_run_state(run.id, Cancelling(message=why) if begun else Cancelled(message=why))


def end_cancelling(client: SyncPrefectClient) -> None:
    """Say of every run that was being cancelled when the server went away that it is: its worker could not say so, and a
    process of it that lives will hear of it."""
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.CANCELLING]}}})
    for run in client.read_flow_runs(flow_run_filter=wanted):
        client.set_flow_run_state(run.id, Cancelled(message="cancelled while the server was away"))


def tag(stage: str, fingerprint: str) -> str:
    """Says what a child makes."""
    return f"{stage}/{fingerprint[:12]}"


def _filter(tags: list[str], states: list[StateType] | None = None) -> FlowRunFilter:
    values: dict[str, object] = {"tags": {"all_": tags}}
    if states:
        values["state"] = {"type": {"any_": states}}
    return FlowRunFilter.model_validate(values)
