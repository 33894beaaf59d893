"""Is a run still what it was? Every byte of every artifact it names is read from the store and hashed again."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sppo.errors import StoreError
from sppo.progress import Progress, Report, silent
from sppo.runs import finished_iterations, read_recipe
from sppo.store import FileEntry, Manifest, Store
from sppo.store.manifest import mend


@dataclass(frozen=True)
class Verified:
    """One artifact, read again."""

    reference: str
    files: int
    size: int
    """Bytes read."""
    problem: str
    """What is wrong, and what mends it; empty if nothing is."""


def verify_run(store: Store, run: str, report: Report = silent) -> list[Verified]:
    """Each artifact of a run's finished iterations, in the order they were made.

    Raises RunError if no such run was started."""
    read_recipe(store, run)
    digests: dict[str, str] = {}
    for index in finished_iterations(store, run):
        digests |= {entry.reference: entry.digest for entry in index.artifacts.values()}
    verified: list[Verified] = []
    for reference, digest in digests.items():
        verified.append(verify_artifact(store, reference, digest))
        report(Progress(stage="verify", done=len(verified), total=len(digests), unit="artifacts", note=reference[:24]))
    return verified


def verify_artifact(store: Store, reference: str, digest: str) -> Verified:
    """Hash an artifact's objects as they lie in the store, past every local copy."""
    try:
        manifest = store.open(reference).manifest
    except StoreError as error:
        return Verified(reference, 0, 0, str(error))
    problems = _problems(store, manifest)
    if manifest.digest != digest:
        problems.insert(0, f"its content digest is {manifest.digest[:16]}, the run's index says {digest[:16]}")
    sizes = [entry.size for entry in (*manifest.files, *manifest.logs)]
    if problems:
        problems.append(mend(manifest.stage, manifest.fingerprint))
    return Verified(reference, len(sizes), sum(sizes), "; ".join(problems))


def _problems(store: Store, manifest: Manifest) -> list[str]:
    """What is wrong with each file; an object that holds several is read once."""
    objects: dict[str, list[FileEntry]] = {}
    for entry in (*manifest.files, *manifest.logs):
        objects.setdefault(entry.key(manifest.stage, manifest.fingerprint), []).append(entry)
    problems: list[str] = []
    for key, entries in objects.items():
        with _as_stored(store, key) as path:
            for entry in entries:
                found = "no bytes" if path is None else f"sha256 {_sha256_in(path, entry)[:16]}"
                if found != f"sha256 {entry.sha256[:16]}":
                    problems.append(f"{entry.name} in object {key} has {found}, expected {entry.sha256[:16]}")
    return problems


@contextlib.contextmanager
def _as_stored(store: Store, key: str) -> Iterator[Path | None]:
    """An object's bytes past every local copy; None if it is missing."""
    own = store.backend.local_path(key)
    if own is not None:
        yield own if own.exists() else None
        return
    store.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=store.scratch, prefix="verify-") as copy:
        yield None if store.backend.get_file(key, Path(copy.name)) is None else Path(copy.name)


def _sha256_in(path: Path, entry: FileEntry) -> str:
    """sha256 of an entry's bytes in a file of its object's."""
    digest = hashlib.sha256()
    left = entry.size
    with path.open("rb") as stream:
        stream.seek(0 if entry.pack is None else entry.pack.offset)
        while left and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
