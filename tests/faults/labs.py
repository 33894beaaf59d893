"""Disturb a run at one moment, go on until it is done, compare: one case.

The store of a case begins with what an undisturbed run leaves, without one stage and the run's index: that stage works, all
others are found. Such a beginning is a scene; the scenes together are the whole iteration, and each costs a second or two.
"""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults.boundaries import WHERE, recorded
from faults.finished import FINISHED, Finished, FolderObjects, Objects, S3Objects, difference
from faults.places import Point
from faults.proxy import Fault, FaultProxy, Watch
from faults.starts import Attempt, Client

ATTEMPTS = 6
"""At most, from the first to the one that succeeds."""
MEND = re.compile(r"delete (?:the folder )?(\S+?)(?: of the store)?(?: and run again|,|$)")
"""What messages of damaged objects tell a person to do."""
RECORDS = "runs"
"""The scene in which every stage is found and only the run's own records are written."""


@dataclass(frozen=True)
class Moment:
    """When a run is disturbed."""

    scene: str
    """The stage that works; "" for a run that begins with an empty store."""
    point: Point

    def __str__(self) -> str:
        return f"{self.scene or 'all'}: {self.point}"


@dataclass
class Case:
    """One disturbance and what came of it."""

    moment: Moment
    fault: str
    hit: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    """What was deleted because a message said so."""
    problems: list[str] = field(default_factory=list)
    """Differences after the run said that it was done: silent ones."""
    left: dict[str, int] = field(default_factory=dict)
    redone: list[str] = field(default_factory=list)
    """Chunks, other parts and training steps that were made more than once."""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.fault}: {self.moment}"

    @property
    def done(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].state == "done"

    @property
    def right(self) -> bool:
        """Done in the end, without a difference and without a traceback on the way."""
        return self.done and not self.problems and not self.broken

    @property
    def broken(self) -> list[str]:
        """Tracebacks that a user would have seen."""
        return [attempt.message for attempt in self.attempts if attempt.state == "broken"]


@dataclass
class Reference:
    """Of undisturbed runs."""

    expected: Finished
    whole: dict[str, bytes]
    """Everything that such a run leaves."""
    moments: list[Moment] = field(default_factory=list)

    def scenes(self) -> dict[str, tuple[str, ...]]:
        """For each scene the folders that it begins without."""
        stages = dict.fromkeys(key.split("/")[0] for key in self.whole if key.endswith("/manifest.json"))
        together = {"generate": ("generate", "sample")}  # of one engine load
        own = {stage: together.get(stage, (stage,)) for stage in stages if stage != "sample"}
        return {**own, RECORDS: (RECORDS,)} if own else {"": ("",)}

    def beginning(self, scene: str) -> dict[str, bytes]:
        """What a scene's store begins with."""
        gone = self.scenes()[scene]
        index = re.compile(rf"{RECORDS}/[^/]+/iteration-")
        return {
            key: held for key, held in self.whole.items() if scene and key.split("/")[0] not in gone and not index.match(key)
        }


class Lab:
    """One pipeline, one store server or folder. Usable by one thread."""

    def __init__(self, pipeline: str, folder: Path, world: dict[str, str], client: Client, environment: dict[str, str]) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.world = world
        self.client = client
        self.environment = {**environment, "FAULTS_WORK": str(folder / "work.txt")}
        self.scratch = folder / "scratch"
        self.scene = ""
        self._number = 0

    def fresh(self, beginning: Mapping[str, bytes]) -> tuple[str, Objects]:
        """URL of a new store with these objects, and the store seen from outside."""
        raise NotImplementedError

    def attempt(self, url: str, case: Case | None) -> Attempt:
        """One attempt; with a case, the disturbed one."""
        raise NotImplementedError

    def points(self) -> list[Point]:
        """Of the last attempt without a case."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until nothing of the attempts is under way."""

    def told(self) -> dict[str, str]:
        """What the pipeline starts from. The store is tried out where a run begins, and where its own records are the scene."""
        return self.world if self.scene in ("", RECORDS) else {**self.world, "store": "tried out"}

    def undisturbed(self, beginning: Mapping[str, bytes], scene: str = "") -> tuple[list[Point], dict[str, bytes]]:
        """The points of a run and all that it leaves."""
        self.scene = scene
        url, objects = self.fresh(beginning)
        attempt = self.attempt(url, None)
        assert attempt.state == "done", attempt.message
        points, found = self.points(), objects.all()
        self._clear(objects)
        return points, found

    def case(self, moment: Moment, fault: str, reference: Reference) -> Case:
        """Disturb a run there, then run again until it is done, mending as the messages say; compare."""
        began = time.monotonic()
        case = Case(moment, fault)
        self.scene = moment.scene
        url, objects = self.fresh(reference.beginning(moment.scene))
        for number in range(ATTEMPTS):
            case.attempts.append(self.attempt(url, case if number == 0 else None))
            if case.done:
                break
            if number == 0 and len(str(moment)) % 2:  # every other one goes on on another machine
                shutil.rmtree(self.scratch, ignore_errors=True)
            self._mend(case, objects)
        self.settle()
        if case.done:
            found = FINISHED[self.pipeline](objects.all())
            case.problems, case.left = difference(found, reference.expected), found.left
        case.redone = self._redone()
        self._clear(objects)
        case.seconds = round(time.monotonic() - began, 2)
        return case

    def _mend(self, case: Case, objects: Objects) -> None:
        last = case.attempts[-1]
        told = MEND.search(last.message) if last.error == "CorruptArtifactError" else None
        if told:
            objects.delete(told[1])
            case.mended.append(told[1])

    def _redone(self) -> list[str]:
        work = Path(self.environment["FAULTS_WORK"])
        made = Counter(line.split()[0] for line in work.read_text().splitlines()) if work.exists() else Counter()
        return sorted(name for name, times in made.items() if times > 1)

    def _clear(self, objects: Objects) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        Path(self.environment["FAULTS_WORK"]).unlink(missing_ok=True)
        objects.delete("")


class RequestLab(Lab):
    """Against an S3 server behind a fault proxy."""

    def __init__(
        self,
        pipeline: str,
        folder: Path,
        world: dict[str, str],
        client: Client,
        environment: dict[str, str],
        proxy: FaultProxy,
        s3: Any,
        base: str,
    ) -> None:
        super().__init__(pipeline, folder, world, client, environment)
        self._proxy, self._s3, self._base = proxy, s3, base
        self._watch = self._disturbed = Watch("nothing")

    def fresh(self, beginning: Mapping[str, bytes]) -> tuple[str, Objects]:
        self._number += 1
        url = f"{self._base}/{self.folder.name}/case-{self._number}-of-it"
        return url, S3Objects(self._s3, url, beginning)

    def attempt(self, url: str, case: Case | None) -> Attempt:
        self._watch = Watch(url.removeprefix("s3://"), kill=self.client.kill)
        if case is not None:
            self._watch.point, self._watch.fault = case.moment.point, Fault(case.fault)
            self._disturbed = self._watch
        self._proxy.watch(self._watch)
        attempt = self.client.run(self.pipeline, url, self.scratch, self.told(), self.environment)
        if case is not None:
            case.hit = self._watch.hit
        return attempt

    def points(self) -> list[Point]:
        return list(self._watch.numbering.points)

    def settle(self) -> None:
        self._proxy.settle(self._disturbed)


class FileLab(Lab):
    """Against a folder, killed at a file operation."""

    def fresh(self, beginning: Mapping[str, bytes]) -> tuple[str, Objects]:
        self._number += 1
        root = self.folder / f"store-{self._number}"
        return str(root), FolderObjects(root, beginning)

    def attempt(self, url: str, case: Case | None) -> Attempt:
        record = self.folder / "points.jsonl"
        record.unlink(missing_ok=True)
        told: dict[str, Any] = {"folders": [url, str(self.scratch)], "record": str(record)}
        if case is not None:
            told = {**told, "record": None, "kill": {**asdict(case.moment.point), "after": case.fault == Fault.KILLED_AFTER}}
        environment = {**self.environment, WHERE: json.dumps(told)}
        attempt = self.client.run(self.pipeline, url, self.scratch, self.told(), environment)
        if case is not None:
            case.hit = attempt.state == "killed"
        return attempt

    def points(self) -> list[Point]:
        return recorded(self.folder / "points.jsonl")
