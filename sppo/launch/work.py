"""Who works on an artifact right now, as a small record in the store: what `sppo status` shows and a waiting parent reads.

`<stage>/<fingerprint>/work/<n>-of-<m>.json`, one for each machine at work, replaced every few seconds, removed when the
artifact is committed. No commit decision rests on it.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sppo.errors import StoreError
from sppo.progress import Progress
from sppo.store import FileEntry, Store
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed

log = logging.getLogger(__name__)

BEAT_S = 5.0
"""Between two replacements of a record."""


class Failure(BaseModel):
    """Why a group failed: the class of the error and its words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    message: str


class WorkRecord(BaseModel):
    """One machine's work on an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    number: int
    """1 .. of."""
    of: int
    attempt: str
    """What this attempt is told from others by: the flow run's id on a pool, else a random word."""
    host: str
    process: int
    devices: tuple[str, ...]
    """Names of the devices that it holds; empty on CPU."""
    state: Literal["running", "failed", "done"]
    progress: Progress | None = None
    failure: Failure | None = None
    device_seconds: float = 0.0
    """Wall seconds times devices held; on CPU times processes."""
    results: tuple[dict[str, Any], ...] = ()
    """What its processes measured."""
    logs: tuple[FileEntry, ...] = ()
    begun: str
    """UTC, ISO 8601, as `at`, when the record was last replaced."""
    at: str


def work_key(stage: str, fingerprint: str, number: int, of: int) -> str:
    """Where a record lies in the store."""
    return f"{stage}/{fingerprint}/work/{number}-of-{of}.json"


def read_work(store: Store, stage: str, fingerprint: str, number: int, of: int) -> WorkRecord | None:
    """One record, or None where there is none."""
    key = work_key(stage, fingerprint, number, of)
    content = store.backend.read(key)
    return None if content is None else parse_record(WorkRecord, content, key)


def all_work(store: Store, stage: str, fingerprint: str) -> list[WorkRecord]:
    """Every record of an artifact in the making, in the order of their numbers."""
    keys = [key for key in store.backend.list(f"{stage}/{fingerprint}/work") if key.endswith(".json")]
    found = [(key, store.backend.read(key)) for key in keys if not key.endswith((".job.json", ".meeting.json"))]
    records = [parse_record(WorkRecord, content, key) for key, content in found if content is not None]
    return sorted(records, key=lambda record: (record.of, record.number))


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Beats:
    """Keeps a record fresh from a thread of its own, so that a slow store holds up no one who watches processes."""

    def __init__(self, store: Store, record: WorkRecord) -> None:
        self.store = store
        self.record = record
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="work-record", daemon=True)

    def show(self, progress: Progress) -> None:
        """Put this progress into the next replacement."""
        with self._lock:
            self.record = self.record.model_copy(update={"progress": progress})

    def write(self, **changes: object) -> None:
        """Replace the record now."""
        with self._lock:
            self.record = self.record.model_copy(update={**changes, "at": now()})
            record = self.record
        key = work_key(record.stage, record.fingerprint, record.number, record.of)
        self.store.backend.replace(key, sealed(record, key))

    def finish(self, results: tuple[dict[str, Any], ...], logs: tuple[FileEntry, ...], device_seconds: float) -> WorkRecord:
        """Say that all is done, and what came of it."""
        self.stop()
        self.write(state="done", results=results, logs=logs, device_seconds=round(device_seconds, 1))
        return self.record

    def start(self) -> None:
        """Write the record, and again every few seconds."""
        self.write()
        self._thread.start()

    def stop(self) -> None:
        """Replace it no more."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self.write()
            except StoreError as problem:  # the work itself goes on: its own writes decide
                log.warning("%s: its work record could not be replaced: %s", self.record.stage, problem)


@contextmanager
def beating(store: Store, stage: str, fingerprint: str, number: int, of: int, attempt: str) -> Iterator[Beats]:
    """A record `running` while this lasts, then `failed` with the reason if it ended in an error; the caller finishes it."""
    began = now()
    beats = Beats(
        store,
        WorkRecord(
            stage=stage,
            fingerprint=fingerprint,
            number=number,
            of=of,
            attempt=attempt,
            host=socket.gethostname(),
            process=os.getpid(),
            devices=(),
            state="running",
            begun=began,
            at=began,
        ),
    )
    beats.start()
    try:
        yield beats
    except BaseException as error:
        beats.stop()
        if isinstance(error, Exception):
            beats.write(state="failed", failure=Failure(error=type(error).__name__, message=str(error)))
        raise
    else:
        beats.stop()  # again, if it was finished: that does nothing


def silence(record: WorkRecord) -> float:
    """Seconds since a record was replaced, by this machine's clock."""
    return time.time() - datetime.fromisoformat(record.at).timestamp()
