"""Ctrl-C: one message, no process left behind, at once."""

import contextvars
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from uuid import UUID

import psutil  # type: ignore[import-untyped]

from flows.terminal import Screen

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
TELL_S = 5.0
"""At most, to tell the server."""


@contextmanager
def interruptible(screen: Screen) -> Iterator[None]:
    """For a while, Ctrl-C ends this process and all that it started.

    Unwinding instead would take minutes: Prefect waits for its threads, attempts stages again whose workers the terminal
    interrupted as well, and its temporary server, which would be told of it, is gone by then."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_children()
        tell_server()
        screen.say_why("stopped; what was committed is kept: the same command, or `sppo resume`, continues from there")
        os._exit(128 + signal.SIGINT)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tell_server() -> None:
    """Cancel this process's flow run on a configured server: it would take the run for alive for minutes, and whatever works
    for the run elsewhere would go on."""
    if "prefect" not in sys.modules:
        return
    # in a thread: a server that does not answer, or a lock that the interrupted code holds, must not keep the person waiting
    teller = threading.Thread(target=contextvars.copy_context().run, args=(_cancel_flow_run,), daemon=True)
    teller.start()
    teller.join(TELL_S)


def _cancel_flow_run() -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.settings import get_current_settings
    from prefect.states import Cancelled

    if get_current_settings().api.url is None or flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            root = UUID(flow_run.root_flow_run_id)
            client.set_flow_run_state(root, Cancelled(message="stopped at the terminal"), force=True)
    except httpx.HTTPError as problem:
        log.warning("the Prefect server was not told that the run was stopped: %s", problem)


def end_children() -> None:
    """End every process below this one: politely, then at once."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        _send(child, signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=GRACE_S)
    for child in alive:
        _send(child, signal.SIGKILL)


def _send(child: psutil.Process, number: int) -> None:
    try:
        child.send_signal(number)
    except psutil.NoSuchProcess:
        return
