"""Time as the store tells it: whose clock is off plays no part."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """When an object was last written, by the clock of the server that keeps it."""

    at: float
    """Seconds since 1970."""
    age: float
    """Seconds since then."""
