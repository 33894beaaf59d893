"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found, in a line."""

    state: Literal["ok", "open", "wrong"]
    """`open`: it works, and lets in, loses or leaves out more than it has to."""
    subject: str
    said: str
    move: str = ""
    """What to do about it."""


def ok(subject: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", subject, said)


def half_open(subject: str, said: str, move: str) -> Finding:
    """It works, and could be better."""
    return Finding("open", subject, said, move)


def wrong(subject: str, said: str, move: str) -> Finding:
    """A run would fail, or somebody is let in."""
    return Finding("wrong", subject, said, move)
