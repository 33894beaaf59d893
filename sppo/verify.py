"""Is a run still what it was? Every byte of every artifact it names is read from the store and hashed again."""

import hashlib
from dataclasses import dataclass

from sppo.errors import StoreError
from sppo.progress import Progress, Report, silent
from sppo.runs import finished_iterations, read_recipe
from sppo.store import FileEntry, Manifest, Store


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
    entries = (*manifest.files, *manifest.logs)
    problems = [problem for entry in entries if (problem := _problem(store, manifest, entry))]
    if manifest.digest != digest:
        problems.insert(0, f"its content digest is {manifest.digest[:16]}, the run's index says {digest[:16]}")
    mend = f"; delete the folder {reference} of the store and run again: only this artifact is recomputed"
    return Verified(reference, len(entries), sum(entry.size for entry in entries), "; ".join(problems) + mend * bool(problems))


def _problem(store: Store, manifest: Manifest, entry: FileEntry) -> str:
    key = entry.key(manifest.stage, manifest.fingerprint)
    digest = hashlib.sha256()
    for block in store.backend.blocks(key):
        digest.update(block)
    found = digest.hexdigest()
    return "" if found == entry.sha256 else f"object {key} has sha256 {found[:16]}, expected {entry.sha256[:16]}"
