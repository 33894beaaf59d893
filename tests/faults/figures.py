"""What came of many cases."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from faults.finished import FINISHED, difference
from faults.labs import RECORDS, Case, Lab, Moment, Reference
from faults.places import Point
from faults.proxy import Fault

Thing = TypeVar("Thing")


@dataclass
class Figures:
    """Of many cases."""

    points: int
    cases: int = 0
    faults: int = 0
    kills: int = 0
    missed: int = 0
    """Points that this run did not come to."""
    unharmed: int = 0
    """Done at the first attempt."""
    resumed: int = 0
    """Done at a later one."""
    mended: int = 0
    """Of these, after something was deleted as a message said."""
    unfinished: int = 0
    silent: int = 0
    """Differences after a run that said it was done."""
    tracebacks: int = 0
    redone: int = 0
    """Chunks, other parts and training steps that were made twice."""
    most_redone: int = 0
    """In one case."""
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Of all cases, several at a time."""
    names: list[str] = field(default_factory=list)
    """Of cases that are not as they should be."""
    tried: set[str] = field(default_factory=set)
    """Names of all cases."""

    def add(self, case: Case) -> None:
        killed = case.fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)
        self.tried.add(case.name)
        self.cases += 1
        self.kills += killed and case.hit
        self.faults += case.hit and not killed
        self.missed += not case.hit
        self.unharmed += case.done and len(case.attempts) == 1
        self.resumed += case.done and len(case.attempts) > 1
        self.mended += case.done and bool(case.mended)
        self.unfinished += not case.done
        self.silent += bool(case.problems)
        self.tracebacks += bool(case.broken)
        self.redone += len(case.redone)
        self.most_redone = max(self.most_redone, len(case.redone))
        self.seconds = round(self.seconds + case.seconds, 1)
        for folder, count in case.left.items():
            self.left[folder] = self.left.get(folder, 0) + count
        if not case.right:
            self.names.append(case.name)


def reference_of(labs: Sequence[Lab]) -> Reference:
    """A whole undisturbed run, then one of each scene: what it leaves must be the same, or nothing could be compared."""
    lab = labs[0]
    points, whole = lab.undisturbed({})
    reference = Reference(FINISHED[lab.pipeline](whole), whole)
    assert reference.expected.problems == ()
    if "" in reference.scenes():
        reference.moments = [Moment("", point) for point in points]
        return reference
    found: dict[str, list[Moment]] = {}

    def play(scene: str, lab: Lab) -> None:
        points, left = lab.undisturbed(reference.beginning(scene), scene)
        assert difference(FINISHED[lab.pipeline](left), reference.expected) == []
        found[scene] = [Moment(scene, point) for point in own_points(points, scene, reference.scenes()[scene])]

    _share_out(labs, list(reference.scenes()), play)
    reference.moments = [moment for scene in reference.scenes() for moment in found[scene]]
    return reference


def own_points(points: Sequence[Point], scene: str, folders: Sequence[str]) -> list[Point]:
    """Those while the scene's stage works; of the records' scene all: it finds every stage, and is what any run does."""
    if scene == RECORDS:
        return list(points)
    own = [
        number for number, point in enumerate(points) if f"/{point.place}/".replace("//", "/").split("/")[_at(point)] in folders
    ]
    return list(points[own[0] : own[-1] + 1])


def _at(point: Point) -> int:
    return 2 if point.place.startswith("store/") else 1


def campaign(
    labs: Sequence[Lab],
    cases: Sequence[tuple[Moment, str]],
    reference: Reference,
    tell: Callable[[Case], None],
    until: float = float("inf"),
) -> None:
    """Work through the cases, each lab in a thread of its own, until a time of `time.monotonic`."""
    telling = threading.Lock()

    def work(asked: tuple[Moment, str], lab: Lab) -> None:
        if time.monotonic() < until:
            case = lab.case(*asked, reference)
            with telling:
                tell(case)

    _share_out(labs, cases, work)


def _share_out(labs: Sequence[Lab], things: Sequence[Thing], work: Callable[[Thing, Lab], None]) -> None:
    left = list(reversed(things))
    taking = threading.Lock()

    def each(lab: Lab) -> None:
        while True:
            with taking:
                if not left:
                    return
                thing = left.pop()
            work(thing, lab)

    with ThreadPoolExecutor(len(labs)) as threads:
        for done in [threads.submit(each, lab) for lab in labs]:
            done.result()
