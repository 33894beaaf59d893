"""How fast a store is from here: what `sppo store bench` shows."""

import os
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sppo.progress import Progress, Report, silent
from sppo.store.step import Identity, Outcome, Step
from sppo.store.store import Store
from sppo.store.workspace import Workspace

STAGE = "speed"
"""Prefix of the keys that are written, and removed again."""
BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Load:
    """What is moved to measure a store."""

    large_bytes: int = 512 << 20
    small_files: int = 1000
    small_bytes: int = 64 << 10
    records: int = 100
    lookups: int = 1000


@dataclass(frozen=True)
class StoreSpeed:
    """Rates of a store, each including what makes a transfer trustworthy: sha256 before and after, sizes, read-back."""

    load: Load
    large_put_mb_s: float
    large_get_mb_s: float
    small_put_files_s: float
    """Small files as the content of one artifact, its manifest included."""
    small_get_files_s: float
    """All of them opened as local files."""
    creates_s: float
    """Create-once records a second, one after the other: what a commit waits for."""
    lookups_s: float
    """Sizes of objects asked for a second, many at a time: what finding a finished artifact waits for."""
    preflight_s: float
    """Seconds from opening the store to knowing that it is writable."""


def measure(url: str, load: Load | None = None, report: Report = silent) -> StoreSpeed:
    """Measure a store with random bytes below a prefix of its own, which are removed however it ends. Raises StoreError."""
    load, draw = load or Load(), secrets.token_hex(8)
    identities = [Identity(STAGE, 1, {"draw": draw, "of": of}, {}) for of in ("large", "small", "records")]
    fingerprints = [identity.fingerprint for identity in identities]
    scratch = Store(url).scratch
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="speed-") as folder:
        opened = time.monotonic()
        store = Store(url, Path(folder))
        store.check_writable()
        preflight = time.monotonic() - opened
        try:
            with store.workspace(STAGE, fingerprints[0]) as workspace:
                large = _large(store, workspace, load, report)
            small = _small(store, identities[1], load, report)
            records = _records(store, fingerprints[2], load, report)
        finally:
            for fingerprint in fingerprints:
                for key in store.backend.list(f"{STAGE}/{fingerprint}"):
                    store.backend.delete(key)
    return StoreSpeed(load, *large, *small, *records, preflight_s=preflight)


def _rate(amount: float, work: Callable[[], object]) -> float:
    """An amount of something a second."""
    started = time.monotonic()
    work()
    return amount / max(time.monotonic() - started, 1e-9)


def _large(store: Store, workspace: Workspace, load: Load, report: Report) -> tuple[float, float]:
    path = write_random(workspace.folder / "large", load.large_bytes)
    report(Progress(stage=STAGE, done=0, total=4, unit="measurements", note="large file, up"))
    put = _rate(load.large_bytes / 1e6, lambda: workspace.add_file(path))
    report(Progress(stage=STAGE, done=1, total=4, unit="measurements", note="large file, down"))
    return put, _rate(load.large_bytes / 1e6, lambda: workspace.part_path(workspace.files[0]))


def _small(store: Store, identity: Identity, load: Load, report: Report) -> tuple[float, float]:
    report(Progress(stage=STAGE, done=2, total=4, unit="measurements", note="small files"))

    def run(workspace: Workspace) -> Outcome:
        names = [f"{number:05d}.bin" for number in range(load.small_files)]
        paths = [write_random(workspace.folder / name, load.small_bytes) for name in names]
        begun.append(time.monotonic())
        workspace.add_files(paths)
        return Outcome("")

    begun: list[float] = []
    artifact = store.build(Step(identity, run))
    put = load.small_files / (time.monotonic() - begun[0])
    return put, _rate(load.small_files, artifact.folder)


def _records(store: Store, fingerprint: str, load: Load, report: Report) -> tuple[float, float]:
    report(Progress(stage=STAGE, done=3, total=4, unit="measurements", note="records"))
    keys = [f"{STAGE}/{fingerprint}/parts/{number}.json" for number in range(load.records)]
    creates = _rate(load.records, lambda: [store.backend.create(key, b"{}") for key in keys])
    asked = [keys[number % len(keys)] for number in range(load.lookups)]
    return creates, _rate(load.lookups, lambda: store.backend.sizes(asked))


def write_random(path: Path, size: int) -> Path:
    """A file of bytes that no store can compress."""
    with path.open("wb") as stream:
        for start in range(0, size, BLOCK_BYTES):
            stream.write(os.urandom(min(BLOCK_BYTES, size - start)))
    return path
