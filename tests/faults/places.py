"""Names of storage requests and of file operations that are the same in every run: what differs from run to run is left out.

Fingerprints, content keys, random names and times become `*`, so that the n-th request of one run is found again in another,
whatever order its threads took.
"""

import re
from collections import Counter
from dataclasses import dataclass

CHANGING = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "*"),  # fingerprints
    (re.compile(r"(files|packs|objects|folders|checks)/[0-9a-f]{16,64}"), r"\1/*"),
    (re.compile(r"(events\.out\.tfevents)\.[A-Za-z0-9._-]+"), r"\1.*"),  # time, host, process
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22,27}\b|\b[0-9a-f]{32}\b"), "*"),  # random words
    (re.compile(r"(\.writing-|\.reading-|pack-|leases/tmp)[a-z0-9_]{8}\b"), r"\1*"),
    (re.compile(r"(work/[a-z-]+)-[0-9a-f]{8}-[a-z0-9_]{8}\b"), r"\1-*"),  # work folders
    (re.compile(r"-[0-9a-f]{8}-\d+-(?=\d+-of-)"), "-*-"),  # logs
    (re.compile(r"\d{9,}"), "*"),  # times
)


@dataclass(frozen=True, order=True)
class Point:
    """One moment of a run: the `occurrence`-th time (from 1) that `what` is done at `place`."""

    what: str
    """`PUT`, `rename`, .."""
    place: str
    """A key or a path, without what changes from run to run."""
    occurrence: int

    def __str__(self) -> str:
        return f"{self.what} {self.place} #{self.occurrence}"


def place_of(path: str) -> str:
    """A key or path without what changes from run to run."""
    for pattern, name in CHANGING:
        path = pattern.sub(name, path)
    return path


class Numbering:
    """Gives every moment of a run its point, in the order in which they come."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def next(self, what: str, path: str) -> Point:
        """The point of what is done now."""
        place = place_of(path)
        self._seen[what, place] += 1
        point = Point(what, place, self._seen[what, place])
        self.points.append(point)
        return point
