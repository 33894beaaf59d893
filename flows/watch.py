"""A flow run that is over on the server is over here.

Prefect ends a cancelled run by a signal from its worker. That is lost if the server was away, or if the worker is gone; so each
flow also asks, and ends its own worker processes when its run, or the run that it works for, does not go on.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from flows.children import asked_once, server
from sppo.errors import StoppedError
from sppo.launch.processes import halt, start_afresh

log = logging.getLogger(__name__)

ASK_S = 5.0
_watchers: list[threading.Thread] = []


@contextmanager
def watched_run(parent: str | None = None) -> Iterator[None]:
    """While this lasts, end this process's workers as soon as its flow run, or `parent`, is over or was taken over."""
    from prefect.runtime import flow_run

    if not _watchers:
        start_afresh()  # what ended an earlier flow of this process does not end this one
    over = threading.Event()
    wanted = [str(flow_run.id), *([parent] if parent else [])]
    # settings, and with them the server, are part of the context
    watch = partial(copy_context().run, _watch, wanted, flow_run.run_count, over)
    thread = threading.Thread(target=watch, name="run-watcher", daemon=True)
    _watchers.append(thread)
    thread.start()
    try:
        yield
    except StoppedError as error:
        _end_cancelling(str(flow_run.id), str(error))
        raise
    finally:
        over.set()
        _watchers.remove(thread)


def cancel_what_works_for(flow: object, flow_run: FlowRun, state: object) -> None:
    """Prefect calls this when a run is cancelled: its children are other flow runs, at work or waiting for a worker."""
    from flows.children import cancel_children

    cancel_children(str(flow_run.id))


def _end_cancelling(name: str, why: str) -> None:
    """A run that is being cancelled may end as Cancelled alone. Its worker sees to that, if it lives and reached the server;
    else the run would be Cancelling for ever, and keep its deployment's other runs waiting."""
    with server() as client:
        run = client.read_flow_run(UUID(name))
        if run.state is not None and run.state.is_cancelling():
            client.set_flow_run_state(run.id, Cancelled(message=why), force=True)


def _watch(wanted: list[str], attempt: int, over: threading.Event) -> None:
    away = False
    with asked_once(), get_client(sync_client=True) as client:
        while not over.wait(ASK_S):
            try:
                reason = next((reason for name in wanted if (reason := _reason(client, name, wanted[0], attempt))), "")
            except httpx.HTTPError as problem:  # the work goes on without the server; what happened meanwhile is seen after
                if not away:
                    log.warning("the Prefect server does not answer (%s); work goes on", problem or type(problem).__name__)
                away = True
                continue
            if away:
                log.info("the Prefect server answers again")
                away = False
            if reason and not over.is_set():
                log.warning("%s: ending the worker processes", reason)
                halt(reason)
                return


def _reason(client: SyncPrefectClient, name: str, own: str, attempt: int) -> str:
    """Why a flow run does not go on, in words; empty if it does."""
    try:
        run = client.read_flow_run(UUID(name))
    except ObjectNotFound:
        return f"flow run {name} is not known to the server any more"
    if run.state is not None and (run.state.is_final() or run.state.is_cancelling()):
        return f"flow run {run.name} is {str(run.state.name).lower()}"
    if name == own and _attempt_of(run) > attempt:
        return f"flow run {run.name} was taken over by another attempt"
    return ""


def _attempt_of(run: FlowRun) -> int:
    return int(run.run_count or 0)
