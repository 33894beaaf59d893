"""Local files that hold an artifact's bytes: the store's own or copies in scratch, verified before anyone reads them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sppo.errors import CorruptArtifactError
from sppo.fingerprint import file_sha256
from sppo.store.backend import Backend
from sppo.store.manifest import FileEntry, mend
from sppo.store.packs import entry_of, split_small, write_pack
from sppo.store.parallel import in_parallel
from sppo.store.scratch import open_scratch

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
        expected = {self.key(entry): entry.object_size for entry in entries}
        for key, size in zip(expected, self.backend.sizes(list(expected)), strict=True):
            if size != expected[key]:
                found = "missing" if size is None else f"{size} bytes"
                raise CorruptArtifactError(f"object {key} is {found}, expected {expected[key]} bytes; {self.mend}")

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
        if not _has_size(path, entry.size):
            pack = self._whole(entry)
            with _temporary(path) as temporary, pack.open("rb") as stream:
                stream.seek(entry.pack.offset)
                content = stream.read(entry.size)
                temporary.write_bytes(content)
                self._accept(temporary, path, entry, entry.sha256, sha256(content).hexdigest())
        return self._trust(path, entry, entry.sha256)

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
            return self._trust(own, entry, digest)
        scratch = open_scratch(self.scratch)
        [path] = scratch.hold(f"objects/{digest}")
        if not _has_size(path, entry.object_size):
            scratch.make_room(entry.object_size)
            with _temporary(path) as temporary:
                found = self.backend.get_file(self.key(entry), temporary)
                if found is None:
                    raise CorruptArtifactError(f"object {self.key(entry)} is missing; {self.mend}")
                self._accept(temporary, path, entry, digest, found)
        return self._trust(path, entry, digest)

    def _accept(self, temporary: Path, path: Path, entry: FileEntry, expected: str, found: str) -> None:
        """Hashed while it was written: no need to read it once more when it is in its place."""
        self._compare(entry, expected, found)
        _verified.add((str(path), expected, temporary.stat().st_mtime_ns))

    def _trust(self, path: Path, entry: FileEntry, digest: str) -> Path:
        mark = (str(path), digest, path.stat().st_mtime_ns)
        if mark not in _verified:
            found = file_sha256(path)
            if found != digest and self.backend.local_path(self.key(entry)) != path:
                path.unlink()  # a bad copy of ours: the next use downloads it again
            self._compare(entry, digest, found)
            _verified.add(mark)
        return path

    def _compare(self, entry: FileEntry, expected: str, found: str) -> None:
        if found != expected:
            raise CorruptArtifactError(
                f"object {self.key(entry)} has sha256 {found[:16]}, expected {expected[:16]}; {self.mend}"
            )


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside another, which it replaces if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".reading-")
    os.close(descriptor)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
