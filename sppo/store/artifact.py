"""A committed artifact, opened: its files are verified before anyone reads them."""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import CorruptArtifactError
from sppo.store.backend import Backend
from sppo.store.manifest import FileEntry, Manifest
from sppo.store.objects import Objects


class Artifact:
    """One artifact of a store. Sizes are checked when it is found, sha256 the first time a file is used."""

    def __init__(self, backend: Backend, manifest: Manifest, scratch: Path) -> None:
        self._objects = Objects(backend, scratch, manifest.stage, manifest.fingerprint)
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
        return ArtifactFile(self, name, self._entry(name, self.manifest.files).sha256)

    def path(self, name: str) -> Path:
        """A verified local path of one file, log or content; downloads it from a remote store once.

        Raises CorruptArtifactError if the bytes are not those of the manifest."""
        return self._objects.path(self._entry(name, (*self.manifest.files, *self.manifest.logs)))

    def _entry(self, name: str, entries: tuple[FileEntry, ...]) -> FileEntry:
        for entry in entries:
            if entry.name == name:
                return entry
        raise CorruptArtifactError(f"{self.name} has no file {name!r}; it has {', '.join(self.file_names()) or 'no files'}")

    def table(self, name: str) -> pa.Table:
        """A parquet file as an Arrow table, page checksums verified."""
        return _read_parquet(self.path(name))

    def tables(self, suffix: str = ".parquet") -> pa.Table:
        """All parquet files, in the order of their names, as one table."""
        entries = [self._entry(name, self.manifest.files) for name in self.file_names(suffix)]
        return pa.concat_tables([_read_parquet(path) for path in self._objects.paths(entries)])

    def text(self, name: str) -> str:
        """A text file's content."""
        return self.path(name).read_text(encoding="utf-8")

    def folder(self) -> Path:
        """A local folder in which every content file has its plain name: what model loaders want."""
        folder = self._objects.scratch / "folders" / self.digest
        folder.mkdir(parents=True, exist_ok=True)
        for entry, path in zip(self.manifest.files, self._objects.paths(self.manifest.files), strict=True):
            _link(path, folder / entry.name)
        return folder


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


def _read_parquet(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True)


def _link(source: Path, target: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.symlink(source.resolve(), target)
        return
    if target.is_symlink() and target.resolve() == source.resolve():
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    os.close(descriptor)
    os.unlink(name)
    os.symlink(source.resolve(), name)
    os.replace(name, target)
