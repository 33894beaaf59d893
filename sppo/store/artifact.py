"""A committed artifact, opened: its files are verified before anyone reads them."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import CorruptArtifactError
from sppo.fingerprint import file_sha256
from sppo.store.backend import Backend
from sppo.store.manifest import FileEntry, Manifest


class Artifact:
    """One artifact of a store. Sizes are checked when it is found, sha256 the first time a file is used."""

    def __init__(self, backend: Backend, manifest: Manifest, scratch: Path) -> None:
        self._backend = backend
        self._scratch = scratch
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Artifact({self.name})"

    @property
    def name(self) -> str:
        """`stage/` and the first 8 digits of the fingerprint: what log lines show."""
        return f"{self.manifest.stage}/{self.manifest.fingerprint[:8]}"

    @property
    def reference(self) -> str:
        """`stage/fingerprint`, which finds this artifact in its store."""
        return f"{self.manifest.stage}/{self.manifest.fingerprint}"

    @property
    def digest(self) -> str:
        """Content digest, 64 hex digits: equal for equal bytes."""
        return self.manifest.digest

    def file_names(self, suffix: str = "") -> list[str]:
        """Names of the content files with this suffix, sorted."""
        return sorted(entry.name for entry in self.manifest.files if entry.name.endswith(suffix))

    def file(self, name: str) -> "ArtifactFile":
        """One content file as an input of its own: a stage that reads it alone is not disturbed by the others."""
        for entry in self.manifest.files:
            if entry.name == name:
                return ArtifactFile(self, name, entry.sha256)
        raise CorruptArtifactError(f"{self.name} has no file {name!r}; it has {', '.join(self.file_names()) or 'no files'}")

    def path(self, name: str) -> Path:
        """A verified local path of one file, log or content; downloads it from a remote store once.

        Raises CorruptArtifactError if the bytes are not those of the manifest."""
        for entry in (*self.manifest.files, *self.manifest.logs):
            if entry.name == name:
                return fetch(self._backend, entry, self._key(entry), self._scratch, self._mend())
        listed = ", ".join(self.file_names()) or "no files"
        raise CorruptArtifactError(f"{self.name} has no file {name!r}; it has {listed}")

    def table(self, name: str) -> pa.Table:
        """A parquet file as an Arrow table, page checksums verified."""
        return pq.read_table(self.path(name), page_checksum_verification=True)

    def tables(self, suffix: str = ".parquet") -> pa.Table:
        """All parquet files, in the order of their names, as one table."""
        return pa.concat_tables([self.table(name) for name in self.file_names(suffix)])

    def text(self, name: str) -> str:
        """A text file's content."""
        return self.path(name).read_text(encoding="utf-8")

    def folder(self) -> Path:
        """A local folder in which every content file has its plain name: what model loaders want."""
        folder = self._scratch / "folders" / self.digest
        folder.mkdir(parents=True, exist_ok=True)
        for entry in self.manifest.files:
            _link(self.path(entry.name), folder / entry.name)
        return folder

    def _key(self, entry: FileEntry) -> str:
        return entry.key(self.manifest.stage, self.manifest.fingerprint)

    def _mend(self) -> str:
        return f"delete the folder {self.reference} of the store and run again: only this artifact is recomputed"


@dataclass(frozen=True)
class ArtifactFile:
    """A single content file of an artifact."""

    artifact: Artifact
    name: str
    digest: str
    """sha256 of its bytes."""

    @property
    def reference(self) -> str:
        """`stage/fingerprint#name`."""
        return f"{self.artifact.reference}#{self.name}"

    def table(self) -> pa.Table:
        """The parquet file as an Arrow table, verified."""
        return self.artifact.table(self.name)


def _link(source: Path, target: Path) -> None:
    if target.is_symlink() and target.resolve() == source.resolve():
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    os.close(descriptor)
    os.unlink(name)
    os.symlink(source.resolve(), name)
    os.replace(name, target)


_verified: set[tuple[str, str, int]] = set()  # (path, sha256, mtime in ns): hashed once a process


def fetch(backend: Backend, entry: FileEntry, key: str, scratch: Path, mend: str) -> Path:
    """A verified local file holding an entry's bytes: the store's own on a local store, else a copy in scratch."""
    own = backend.local_path(key)
    path = own if own is not None else scratch / "objects" / entry.sha256
    if own is None and not (path.exists() and path.stat().st_size == entry.size):
        _download(backend, entry, key, path, mend)
    if not path.exists():
        raise CorruptArtifactError(f"object {key} is missing; {mend}")
    mark = (str(path), entry.sha256, path.stat().st_mtime_ns)
    if mark not in _verified:
        found = file_sha256(path)
        if found != entry.sha256:
            if own is None:
                path.unlink()  # a bad copy of ours: the next use downloads it again
            raise CorruptArtifactError(f"object {key} has sha256 {found[:16]}, expected {entry.sha256[:16]}; {mend}")
        _verified.add(mark)
    return path


def _download(backend: Backend, entry: FileEntry, key: str, path: Path, mend: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".reading-")
    digest = hashlib.sha256()
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for block in backend.blocks(key):
                digest.update(block)
                stream.write(block)
        if digest.hexdigest() != entry.sha256:
            raise CorruptArtifactError(
                f"object {key} has sha256 {digest.hexdigest()[:16]}, expected {entry.sha256[:16]}; {mend}"
            )
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
