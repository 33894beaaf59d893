"""What nobody needs any more: artifacts that no run, publication or branch reaches, attempts that were given up, left-overs.

Reached is what a record of a run or a publication names, what that was made from, and so on; and what an unfinished run would
take up. Everything else goes once nothing of it was written for the grace time, by the store's own clock, and nobody is at
work on it. The manifest goes first, so that no half-deleted artifact is ever believed; and it is put back if a run has come
to need the artifact in that moment.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sppo.errors import CorruptArtifactError, StoreError
from sppo.lineage import readable_manifest
from sppo.progress import Progress, Report, silent
from sppo.reach import Reach, find_reach, marks
from sppo.store import Manifest, PartRecord, Store
from sppo.store.leases import Lease, holder
from sppo.store.manifest import parse_record
from sppo.store.parallel import in_parallel
from sppo.store.preflight import OBJECT
from sppo.store.store import REFERENCE

OWN = re.compile(r"[a-z][a-z-]{0,40}/[0-9a-f]{64}/(manifest\.json|(parts|files|packs|work)/.+)")
"""Keys below an artifact. Others may keep things by sha256 beside it, and those have no manifest either."""
GRACE_S = 7 * 24 * 3600.0
AT_ONCE = 32
Kind = Literal["artifact", "attempt", "left over"]


@dataclass(frozen=True)
class Garbage:
    """Objects that go together."""

    kind: Kind
    reference: str
    """`stage/fingerprint`; `checks` for test records of the store, `writing` for files that were never whole."""
    keys: tuple[str, ...]
    """In the order in which they are deleted."""
    size: int
    """Bytes."""
    age_s: float
    """Since the youngest of them was written."""


def find_garbage(
    store: Store,
    older_than_s: float = GRACE_S,
    keep: Sequence[str] = (),
    attempts: Callable[[str], bool] = lambda reference: True,
    report: Report = silent,
) -> list[Garbage]:
    """All garbage of a store, artifacts first. Nothing is deleted.

    keep: references that are reached whatever else is. attempts: which of the unfinished artifacts may go at all.
    Raises StoreError if a record cannot be read by which something might be reached."""
    reach = find_reach(store, older_than_s, keep)
    folders: dict[str, list[str]] = {}
    for key in store.backend.list(""):
        folders.setdefault(_folder(key), []).append(key)
    found: list[Garbage] = []
    for done, (reference, keys) in enumerate(folders.items()):
        candidate = _candidate(store, reach, reference, keys, attempts)
        if candidate is not None:
            found += _old_enough(store, *candidate, reference, older_than_s)
        report(Progress(stage="gc", done=done + 1, total=len(folders), unit="artifacts", note=reference[:24]))
    found += _old_enough(store, "left over", _never_whole(store), "writing", older_than_s)
    return sorted(found, key=lambda garbage: ("artifact", "attempt", "left over").index(garbage.kind))


def delete_garbage(
    store: Store,
    found: Sequence[Garbage],
    older_than_s: float = GRACE_S,
    keep: Sequence[str] = (),
    report: Report = silent,
) -> tuple[list[Garbage], list[str]]:
    """Delete garbage, each looked at once more: what was deleted, and in words what was not and why."""
    sweep = _Sweep(store, older_than_s, keep)
    deleted: list[Garbage] = []
    kept: list[str] = []
    for done, garbage in enumerate(found):
        reason = sweep.delete(garbage)
        if reason:
            kept.append(f"{garbage.reference}: {reason}")
        else:
            deleted.append(garbage)
        report(Progress(stage="gc", done=done + 1, total=len(found), unit="artifacts", note=garbage.reference[:24]))
    return deleted, kept


def _folder(key: str) -> str:
    """The artifact that a key belongs to; `checks`, or nothing for what is not ours to delete."""
    if OWN.fullmatch(key):
        return "/".join(key.split("/")[:2])
    return "checks" if OBJECT.fullmatch(key) else ""


def _candidate(
    store: Store, reach: Reach, reference: str, keys: list[str], attempts: Callable[[str], bool]
) -> tuple[Kind, list[str]] | None:
    """What of a folder may go, in the order of deletion, whatever its age."""
    if reference == "checks":
        return "left over", keys
    if not reference:
        return None
    manifest = readable_manifest(store, reference)
    if manifest is None:
        given_up = reference not in reach.references and attempts(reference)
        return ("attempt", in_order(keys)) if given_up else None
    if reference in reach.references or reach.wants(manifest):
        return "left over", _left_over(store, manifest, reference, keys)
    return "artifact", in_order(keys)


def in_order(keys: Sequence[str]) -> list[str]:
    """Keys of an artifact as they are to be deleted: what says that something is whole goes before it."""
    return sorted(keys, key=lambda key: (_turn(key), key))


def _turn(key: str) -> int:
    own = "/".join(key.split("/")[2:])
    return 0 if own == "manifest.json" else 1 if own.startswith("parts/") else 2


def _left_over(store: Store, manifest: Manifest, reference: str, keys: Sequence[str]) -> list[str]:
    """Of a committed artifact: who was at work, objects that are not its own, and parts that name those. Records of the parts
    that it is made of are kept: with them a damaged manifest costs no second computation."""
    own = {entry.key(manifest.stage, manifest.fingerprint) for entry in (*manifest.files, *manifest.logs)}
    own.add(f"{reference}/manifest.json")
    parts = {key for key in keys if key.startswith(f"{reference}/parts/")}
    for key in parts:
        content = store.backend.read(key)
        with contextlib.suppress(CorruptArtifactError):  # one that is damaged is of no use
            files = () if content is None else parse_record(PartRecord, content, key).files
            if files and all(entry.key(manifest.stage, manifest.fingerprint) in own for entry in files):
                own.add(key)
    return in_order([key for key in keys if key not in own])


def _old_enough(store: Store, kind: Kind, keys: Sequence[str], reference: str, older_than_s: float) -> list[Garbage]:
    """As garbage, if nothing of it was written within the grace time, and nobody is at work on it. Of left-overs each object
    counts alone."""
    ages = ages_of(store, keys)
    if kind == "left over":
        keys = [key for key in keys if ages[key] >= older_than_s]
    age = min((ages[key] for key in keys), default=0.0)
    if not keys or age < older_than_s or (REFERENCE.fullmatch(reference) and holder(store.backend, *reference.split("/"))):
        return []
    size = sum(size or 0 for size in store.backend.sizes(keys))
    return [Garbage(kind, reference, tuple(keys), size, age)]


def ages_of(store: Store, keys: Sequence[str]) -> dict[str, float]:
    """Seconds since each object was written, by the store's clock; 0 for one that is gone, of which nothing is known."""
    written = in_parallel(store.backend.written, keys, AT_ONCE)
    return {key: 0.0 if each is None else each.age for key, each in zip(keys, written, strict=True)}


def _never_whole(store: Store) -> list[str]:
    """Files of a folder that a killed process was writing under another name."""
    root = store.backend.local_path("")
    return [] if root is None else sorted(str(path.relative_to(root)) for path in root.rglob(".writing-*"))


class _Sweep:
    """Deletes garbage beside running runs: what they may reach is looked at again when a record appears or goes, or a run
    starts."""

    def __init__(self, store: Store, older_than_s: float, keep: Sequence[str]) -> None:
        self.store = store
        self.older_than_s = older_than_s
        self.keep = keep
        self._marks: Mapping[str, float] = {}
        self._reach: Reach | None = None

    def delete(self, garbage: Garbage) -> str:
        """Delete it; why it stays, if it does."""
        if not REFERENCE.fullmatch(garbage.reference):
            self._delete(garbage.keys)
            return ""
        lease = Lease(self.store.backend, *garbage.reference.split("/"))
        who = lease.take()
        if who:
            return f"{who} is at work on it"
        try:
            return self._delete_held(garbage)
        finally:
            lease.release()

    def _delete_held(self, garbage: Garbage) -> str:
        reference, keys = garbage.reference, garbage.keys
        manifest = readable_manifest(self.store, reference)
        there = [key for key in self.store.backend.list(reference) if OWN.fullmatch(key)]
        if garbage.kind == "left over":
            if manifest is None:
                return "it is not committed any more"
            needless = _left_over(self.store, manifest, reference, there)
            self._delete([key for key in keys if key in needless])
            return ""
        there = [key for key in there if not key.startswith(f"{reference}/work/")]
        ages = ages_of(self.store, there)
        if not ages.keys() <= set(keys) or min(ages.values(), default=garbage.age_s) < garbage.age_s - 1:
            return "something was written to it meanwhile"
        if self._is_reached(reference, manifest):
            return "a run needs it now"
        if manifest is not None:
            content = self.store.backend.read(keys[0])
            self.store.backend.delete(keys[0])
            if content is not None and self._is_reached(reference, manifest):
                self.store.backend.create(keys[0], content)  # its files are all there still
                return "a run came to need it in this moment"
        self._delete(keys)
        return ""

    def _is_reached(self, reference: str, manifest: Manifest | None) -> bool:
        found = marks(self.store)
        if self._reach is None or found != self._marks:
            self._reach, self._marks = find_reach(self.store, self.older_than_s, self.keep), found
        return reference in self._reach.references or (manifest is not None and self._reach.wants(manifest))

    def _delete(self, keys: Sequence[str]) -> None:
        keys = [key for key in keys if "/work/lease-" not in key]  # ours is among them: its release is what deletes them
        for turn in range(3):
            in_parallel(self.store.backend.delete, [key for key in keys if _turn(key) == turn], AT_ONCE)


def check_grace(older_than_s: float) -> float:
    """The grace time itself. Raises StoreError for one within which an evaluation may be at work, which no record names yet."""
    if older_than_s < 86400:
        raise StoreError(
            f"a grace time of {older_than_s / 3600:.0f} h; expected a day or more: evaluations at work have made younger things"
        )
    return older_than_s
