"""Is a run still what it was? Every byte of every record and artifact that it rests on is read from the store and hashed again.

What is wrong can be set aside: exactly the broken objects, and the record that names them, so that what follows makes only
that anew.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from sppo.errors import CorruptArtifactError, RunError, SppoError
from sppo.progress import Progress, Report, silent
from sppo.recipe import StoredModel
from sppo.runs import find_recipe
from sppo.store import FileEntry, Manifest, PartRecord, Store
from sppo.store.leases import Lease
from sppo.store.manifest import mend, parse_record
from sppo.store.parallel import in_parallel
from sppo.store.room import naming_full_disks
from sppo.store.store import REFERENCE
from sppo.verify_records import Verified, last_iteration, read_index, verify_records


def verify_run(store: Store, run: str, unfinished: Sequence[str] = (), report: Report = silent) -> list[Verified]:
    """The records of a run, then each artifact that its finished iterations name or were made from, in the order they were
    made, then what its unfinished iteration has so far.

    unfinished: references of the latter, committed or in the making. Raises RunError if no such run was started."""
    verified = verify_records(store, run)
    wanted: dict[str, str] = dict.fromkeys(unfinished, "") | _named(store, run)
    waiting, seen = list(reversed(wanted)), set(wanted)
    found: list[Verified] = []
    while waiting:
        reference = waiting.pop()
        made, sources = _verify(store, reference, wanted.get(reference, ""))
        if not made.in_the_making or made.files or made.problem:
            found.append(made)
        new = [source for source in sources if source not in seen]
        seen.update(new)
        waiting.extend(reversed(new))
        report(Progress(stage="verify", done=len(found), total=len(seen), unit="artifacts", note=reference[:24]))
    return [*verified, *found]


def verify_artifact(store: Store, reference: str, digest: str = "") -> Verified:
    """Hash an artifact's objects, or those of the parts that it has so far, as they lie in the store, past every local copy.

    digest: what its content is to be; empty if nothing says so."""
    return _verify(store, reference, digest)[0]


def set_aside(store: Store, verified: Sequence[Verified]) -> list[str]:
    """Delete what is broken and nothing else, records before the objects that they name: the keys, in that order.

    Raises RunError at an artifact that somebody is making."""
    return [key for each in verified if each.broken for key in _set_aside(store, each)]


def _set_aside(store: Store, verified: Verified) -> Sequence[str]:
    if not REFERENCE.fullmatch(verified.reference):
        for key in verified.broken:
            store.backend.delete(key)
        return verified.broken
    lease = Lease(store.backend, *verified.reference.split("/"))
    if who := lease.take():
        raise RunError(
            f"{verified.reference} is being made right now by {who}; wait for it, or end it, then give the command again"
        )
    try:
        # reading a run takes hours, and somebody may have made this one anew since
        broken = [key for key in verify_artifact(store, verified.reference).broken if key in verified.broken]
        for key in broken:
            store.backend.delete(key)
        return broken
    finally:
        lease.release()


def _named(store: Store, run: str) -> dict[str, str]:
    """What a run's readable records name: references, and the digest that each is to have."""
    named: dict[str, str] = {}
    for number in range(1, last_iteration(store, run) + 1):
        index = read_index(store, run, number)
        if not isinstance(index, str):
            named |= {entry.reference: entry.digest for entry in index.artifacts.values()}
    with contextlib.suppress(SppoError):  # verify_records has told of it
        recipe = find_recipe(store, run)
        source = None if recipe is None else recipe.policy.source
        if isinstance(source, StoredModel):
            named.setdefault(source.artifact, source.digest or "")
    return named


def _verify(store: Store, reference: str, digest: str) -> tuple[Verified, list[str]]:
    """An artifact, and the references of what it was made from."""
    key = f"{reference}/manifest.json"
    content = store.backend.read(key)
    if content is None:
        return _verify_attempt(store, reference, bool(digest)), []
    try:
        manifest = parse_record(Manifest, content, key)
    except CorruptArtifactError as error:
        return Verified(reference, 0, 0, str(error), (key,)), []
    own = (*manifest.files, *manifest.logs)
    parts, unreadable = _parts(store, reference)  # of its making: left beside it, and taken up if its manifest has to go
    entries = list(dict.fromkeys([*own, *(entry for record in parts.values() for entry in record.files)]))
    wrong = _wrong_objects(store, reference, entries)
    problems = [*unreadable.values(), *(words for each in wrong.values() for words in each)]
    if digest and manifest.digest != digest:
        problems.insert(0, f"its content digest is {manifest.digest[:16]}, the run's index says {digest[:16]}")
    damaged = any(entry.key(manifest.stage, manifest.fingerprint) in wrong for entry in own)
    broken = (*([key] * damaged), *unreadable, *_naming(parts, reference, wrong), *wrong)
    if damaged:
        problems.append(mend(manifest.stage, manifest.fingerprint))
    size = sum(entry.size for entry in entries) + len(content)
    return Verified(reference, len(entries) + 1, size, "; ".join(problems), broken), manifest.made_from


def _verify_attempt(store: Store, reference: str, expected: bool) -> Verified:
    """What is there of an artifact that is not committed. expected: whether an index names it, so that it has to be."""
    problems = [f"no artifact {reference} in the store at {store.url}; the iteration that makes it has to run again"] * expected
    parts, unreadable = _parts(store, reference)
    entries = [entry for record in parts.values() for entry in record.files]
    wrong = _wrong_objects(store, reference, entries)
    problems += [*unreadable.values(), *(words for each in wrong.values() for words in each)]
    broken = (*unreadable, *_naming(parts, reference, wrong), *wrong)
    size = sum(entry.size for entry in entries)
    return Verified(reference, len(entries), size, "; ".join(problems), broken, in_the_making=not expected)


def _parts(store: Store, reference: str) -> tuple[dict[str, PartRecord], dict[str, str]]:
    """The part records of an artifact by their keys; and of those that cannot be read, what is wrong with each."""
    readable: dict[str, PartRecord] = {}
    unreadable: dict[str, str] = {}
    for key in store.backend.list(f"{reference}/parts"):
        content = store.backend.read(key)
        if content is not None:
            try:
                readable[key] = parse_record(PartRecord, content, key)
            except CorruptArtifactError as error:
                unreadable[key] = str(error)
    return readable, unreadable


def _naming(parts: Mapping[str, PartRecord], reference: str, objects: Collection[str]) -> list[str]:
    """Keys of the part records that name one of these objects: a resume would take them for done."""
    stage, fingerprint = reference.split("/")
    return [key for key, part in parts.items() if any(entry.key(stage, fingerprint) in objects for entry in part.files)]


def _wrong_objects(store: Store, reference: str, entries: Sequence[FileEntry]) -> dict[str, list[str]]:
    """What is wrong with the objects that hold these files, by their keys; one that holds several is read once."""
    stage, fingerprint = reference.split("/")
    objects: dict[str, list[FileEntry]] = {}
    for entry in entries:
        objects.setdefault(entry.key(stage, fingerprint), []).append(entry)
    problems = in_parallel(_object_check(store, objects), list(objects))
    return {key: found for key, found in zip(objects, problems, strict=True) if found}


def _object_check(store: Store, objects: Mapping[str, list[FileEntry]]) -> Callable[[str], list[str]]:
    def check(key: str) -> list[str]:
        with _as_stored(store, key) as path:
            if path is None:
                return [f"object {key} is missing, expected {objects[key][0].object_size} bytes"]
            size, expected = path.stat().st_size, objects[key][0].object_size
            problems = [] if size == expected else [f"object {key} is {size} bytes, expected {expected} bytes"]
            for entry in objects[key]:
                found = _sha256_in(path, entry)
                if found != entry.sha256:
                    problems.append(f"{entry.name} in object {key} has sha256 {found[:16]}, expected {entry.sha256[:16]}")
            return problems

    return check


@contextlib.contextmanager
def _as_stored(store: Store, key: str) -> Iterator[Path | None]:
    """An object's bytes past every local copy; None if it is missing."""
    own = store.backend.local_path(key)
    if own is not None:
        yield own if own.is_file() else None
        return
    work = store.scratch / "work"  # where what a killed process leaves is swept
    work.mkdir(parents=True, exist_ok=True)
    with naming_full_disks(store.scratch), tempfile.NamedTemporaryFile(dir=work, prefix="verify-") as copy:
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
