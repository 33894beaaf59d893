"""Local files that hold an artifact's bytes: the store's own or copies in scratch, verified before anyone reads them."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sppo.errors import CorruptArtifactError, StoreError
from sppo.fingerprint import file_sha256
from sppo.store.backend import Backend
from sppo.store.manifest import FileEntry, mend
from sppo.store.packs import entry_of, split_small, write_pack
from sppo.store.parallel import in_parallel
from sppo.store.scratch import open_scratch

log = logging.getLogger(__name__)

_verified: set[tuple[str, str, int]] = set()  # (path, sha256, mtime in ns): hashed once a process


@dataclass(frozen=True)
class Objects:
    """The objects of one artifact, committed or under way."""

    backend: Backend
    scratch: Path
    stage: str
    fingerprint: str

    def check(self, entries: Sequence[FileEntry]) -> None:
        """Ask the store for every object's size, many at a time. Raises CorruptArtifactError for the first that is wrong."""
        wrong = self._wrong({self.key(entry): entry.object_size for entry in entries})
        if wrong:  # asked once more: a line may err where the store does not
            wrong = self._wrong({key: expected for key, (_, expected) in wrong.items()})
        for key, (size, expected) in wrong.items():
            found = "missing" if size is None else f"{size} bytes"
            raise CorruptArtifactError(f"object {key} is {found}, expected {expected} bytes; {self.mend}")

    def _wrong(self, expected: Mapping[str, int]) -> dict[str, tuple[int | None, int]]:
        """Keys whose objects have another size than expected: found and expected."""
        found = zip(expected, self.backend.sizes(list(expected)), strict=True)
        return {key: (size, expected[key]) for key, size in found if size != expected[key]}

    def paths(self, entries: Sequence[FileEntry]) -> list[Path]:
        """A verified local file for each entry, several fetched at a time."""
        if self.backend.local_path("") is None:
            open_scratch(self.scratch).hold(*(f"objects/{entry.sha256}" for entry in entries))
        wanted = {self.key(entry): entry for entry in entries}
        in_parallel(self._whole, list(wanted.values()))
        return [self.path(entry) for entry in entries]  # slices of packs are cut here: nothing waits any more

    def path(self, entry: FileEntry) -> Path:
        """A verified local file that holds an entry's bytes. Raises CorruptArtifactError."""
        if entry.pack is None:
            return self._whole(entry)
        [path] = open_scratch(self.scratch).hold(f"objects/{entry.sha256}")
        if not _is_good(path, entry.sha256, entry.size):
            pack = self._whole(entry)
            with _temporary(path) as temporary, pack.open("rb") as stream:
                stream.seek(entry.pack.offset)
                content = stream.read(entry.size)
                temporary.write_bytes(content)
                self._compare(entry, entry.sha256, sha256(content).hexdigest())
                _remember(path, entry.sha256, temporary)
        return path

    def upload(self, paths: Sequence[Path]) -> list[FileEntry]:
        """Store files, several at a time, the small ones of a remote store in packs: their entries, in order."""
        local = self.backend.local_path("") is not None
        groups = [[path] for path in paths] if local else split_small(paths)
        found = {path: entry for group in in_parallel(self._upload_group, groups) for path, entry in group}
        return [found[path] for path in paths]

    def _upload_group(self, paths: Sequence[Path]) -> list[tuple[Path, FileEntry]]:
        """One object."""
        if len(paths) == 1:
            entries = [entry_of(paths[0])]
            self.backend.put_file(self.key(entries[0]), paths[0])
        else:
            work = self.scratch / "work"
            work.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=work, prefix="pack-") as pack:
                entries = write_pack(paths, Path(pack.name))
                self.backend.put_file(self.key(entries[0]), Path(pack.name))
        return list(zip(paths, entries, strict=True))

    def key(self, entry: FileEntry) -> str:
        """Key of the object that holds an entry's bytes."""
        return entry.key(self.stage, self.fingerprint)

    @property
    def mend(self) -> str:
        """What to do about a damaged object."""
        return mend(self.stage, self.fingerprint)

    def _whole(self, entry: FileEntry) -> Path:
        """A verified local file of the whole object that holds an entry's bytes: the store's own, or a copy."""
        digest = (entry.pack or entry).sha256
        own = self.backend.local_path(self.key(entry))
        if own is not None:
            if not own.exists():
                raise CorruptArtifactError(f"object {self.key(entry)} is missing; {self.mend}")
            if not _is_known(own, digest):
                self._compare(entry, digest, file_sha256(own))
                _remember(own, digest, own)
            return own
        scratch = open_scratch(self.scratch)
        [path] = scratch.hold(f"objects/{digest}")
        if not _is_good(path, digest, entry.object_size):
            scratch.make_room(entry.object_size)
            with _temporary(path) as temporary:
                found = self._download(entry, temporary)
                if found != digest:
                    log.warning("object %s arrived with other bytes than were stored; asking once more", self.key(entry))
                    found = self._download(entry, temporary)
                self._compare(entry, digest, found)
                _remember(path, digest, temporary)
        return path

    def _download(self, entry: FileEntry, path: Path) -> str:
        found = self.backend.get_file(self.key(entry), path)
        if found is None:
            raise CorruptArtifactError(f"object {self.key(entry)} is missing; {self.mend}")
        return found

    def _compare(self, entry: FileEntry, expected: str, found: str) -> None:
        if found != expected:
            raise CorruptArtifactError(
                f"object {self.key(entry)} has sha256 {found[:16]}, expected {expected[:16]}; {self.mend}"
            )


def _is_good(path: Path, digest: str, size: int) -> bool:
    """Whether a copy of ours is there and whole; one that is not is removed, for it can be fetched again."""
    try:
        if path.stat().st_size == size and (_is_known(path, digest) or file_sha256(path) == digest):
            _remember(path, digest, path)
            return True
    except FileNotFoundError:
        return False
    log.warning("the copy %s is damaged; it is fetched again", path)
    path.unlink(missing_ok=True)
    return False


def _is_known(path: Path, digest: str) -> bool:
    return (str(path), digest, path.stat().st_mtime_ns) in _verified


def _remember(path: Path, digest: str, written: Path) -> None:
    """A path's bytes were hashed, where they lie or as they were written: no need to read them again."""
    _verified.add((str(path), digest, written.stat().st_mtime_ns))


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside another, which it replaces if the block ends well. Raises StoreError for a disk that does not take it."""
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".reading-")
        os.close(descriptor)
        yield Path(name)
        os.replace(name, path)
    except OSError as error:
        raise StoreError(
            f"cannot keep a copy of an object at {path}: {error.strerror or error}; make room there, or set SPPO_SCRATCH to a "
            "folder with more of it, then run again"
        ) from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)
