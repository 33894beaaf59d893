"""Ctrl-C: one message, no process left behind, at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil  # type: ignore[import-untyped]

from flows.terminal import Screen

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""


@contextmanager
def interruptible(screen: Screen) -> Iterator[None]:
    """For a while, Ctrl-C ends this process and all that it started.

    Unwinding instead would take minutes: Prefect waits for its threads, attempts stages again whose workers the terminal
    interrupted as well, and its temporary server, which would be told of it, is gone by then."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_children()
        screen.say_why("stopped; what was committed is kept: the same command continues from there")
        os._exit(128 + signal.SIGINT)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
