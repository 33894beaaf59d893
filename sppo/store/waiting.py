"""Waiting for a server: an operation that gets nowhere is an error, however many attempts its client has left."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from sppo.errors import StoreError

VARIABLE = "SPPO_STORE_TIMEOUT_S"
LOOK_S = 0.1
"""Between two looks at whether an operation moves on."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server that does not answer."""

    in_all_s: float
    """For an operation that gets nowhere: all of its attempts, or all parts of a large file that are under way at a time."""

    @property
    def read_s(self) -> float:
        """For an answer to one request; then it is sent again."""
        return self.in_all_s / 4

    @property
    def connect_s(self) -> float:
        """For a connection."""
        return min(10.0, self.read_s)


def read_patience() -> Patience:
    """From $SPPO_STORE_TIMEOUT_S, two minutes if it is not set. Raises StoreError for anything but a positive number."""
    text = os.environ.get(VARIABLE) or "120"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise StoreError(f"{VARIABLE} is {text!r}; expected seconds to wait for a store that does not answer, such as 120")
    return Patience(seconds)


def outwait(future: "Future[Any]", patience: Patience, progress: Callable[[], int] = lambda: 0) -> bool:
    """Wait for an operation: False if nothing moved for as long as patience lasts."""
    seen, since = progress(), time.monotonic()
    while not wait([future], LOOK_S).done:
        if (now := progress()) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience.in_all_s:
            return False
    return True


def unreachable(doing: str, store: str, reason: str) -> StoreError:
    """A failure in words: what was tried, on which store, why it failed, what to do."""
    move = "see that the server answers from here and takes these credentials"
    if "RequestTimeTooSkewed" in reason:
        move = "set this machine's clock, which differs from the server's by more than 15 minutes"
    if "AWS_ERROR_NO_SPACE" in reason:
        move = "make room there, or set SPPO_SCRATCH to a folder with more of it"
    return StoreError(f"cannot {doing} the store at {store}: {reason}; {move}, then run again: what is committed is kept")


def stalled(doing: str, store: str, patience: Patience) -> StoreError:
    """The same for a server that took the request and said nothing."""
    return StoreError(
        f"cannot {doing} the store at {store}: nothing moved for {patience.in_all_s:g} s; see that the server answers from "
        f"here, then run again: what is committed is kept ({VARIABLE} sets how long is waited)"
    )
