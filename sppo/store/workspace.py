"""Where an artifact is made: what it is made of is committed piece by piece, and its manifest last."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import StoreError
from sppo.progress import Report
from sppo.store.manifest import FileEntry, PartRecord
from sppo.store.objects import Objects
from sppo.store.parallel import in_parallel
from sppo.store.scratch import open_scratch

if TYPE_CHECKING:
    from sppo.store.store import Store


class Workspace:
    """Where an artifact is made: a scratch folder, the files committed so far, the parts of earlier attempts."""

    def __init__(self, store: "Store", stage: str, fingerprint: str, report: Report) -> None:
        self.store = store
        self.stage = stage
        self.fingerprint = fingerprint
        self.report = report
        self.files: list[FileEntry] = []
        self.logs: list[FileEntry] = []
        self.metrics: dict[str, float] = {}
        """Of the making, added to the outcome's."""
        self._folder: Path | None = None
        self._objects = Objects(store.backend, store.scratch, stage, fingerprint)

    @property
    def folder(self) -> Path:
        """An empty local folder for this attempt, made on first use."""
        if self._folder is None:
            base = self.store.scratch / "work"
            base.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{self.stage}-{self.fingerprint[:8]}-"))
            open_scratch(self.store.scratch).hold(f"work/{self._folder.name}")
        return self._folder

    def log_path(self, name: str) -> Path:
        """Where a worker process of this attempt logs: it stays there if the attempt fails, for its error names it."""
        # runs of two stores may work on one fingerprint at a time, and each has its own process
        log_name = f"{self.stage}-{self.fingerprint[:8]}-{os.getpid()}-{name}.log"
        return open_scratch(self.store.scratch).hold(f"logs/{log_name}")[0]

    def note_found(self, found: int, chunks: int) -> None:
        """Keep in the manifest how many of the artifact's chunks an earlier attempt had committed: those are not made again."""
        self.metrics |= {"chunks": chunks, "chunks_found": found}

    def upload(self, path: Path) -> FileEntry:
        """Store a file's bytes under its content key; it belongs to nothing until a record names it."""
        return self._objects.upload([path])[0]

    def upload_all(self, paths: Iterable[Path]) -> list[FileEntry]:
        """Store the bytes of several files, several at a time, the small ones of a remote store in packs: their entries, in
        order. They belong to nothing until a record names them."""
        return self._objects.upload(list(paths))

    def add_file(self, path: Path) -> None:
        """Store a file as content of the artifact."""
        self.files.append(self.upload(path))

    def add_files(self, paths: Iterable[Path]) -> None:
        """Store files as content of the artifact, several at a time."""
        self.files.extend(self.upload_all(paths))

    def add_table(self, table: pa.Table, name: str) -> None:
        """Store an Arrow table as parquet."""
        write_parquet(table, self.folder / name)
        self.add_file(self.folder / name)

    def add_text(self, text: str, name: str) -> None:
        """Store UTF-8 text."""
        (self.folder / name).write_text(text, encoding="utf-8")
        self.add_file(self.folder / name)

    def add_log(self, path: Path) -> None:
        """Move a file beside the content: kept, never part of the digest."""
        self.logs.append(self.upload(path))
        path.unlink()

    def commit_part(self, name: str, paths: Iterable[Path], counts: Mapping[str, int] | None = None) -> PartRecord:
        """Store files and then, once, the record that makes them a part. The first writer's part is returned."""
        return self.commit_entries(name, self.upload_all(paths), counts)

    def commit_entries(self, name: str, entries: Iterable[FileEntry], counts: Mapping[str, int] | None = None) -> PartRecord:
        """The record of a part whose files are uploaded, by whichever machines."""
        record = PartRecord(name=name, files=tuple(entries), counts=dict(counts or {}))
        if self.store.backend.create(self._part_key(name), record.to_bytes(self._part_key(name))):
            return record
        existing = self.part(name)
        if existing is None:
            raise StoreError(f"part {name} of {self.stage}/{self.fingerprint} was neither written nor found")
        return existing

    def part(self, name: str) -> PartRecord | None:
        """A committed part, or None."""
        return self.store.record(PartRecord, self._part_key(name))

    def parts(self) -> list[str]:
        """Names of the committed parts, sorted."""
        prefix = f"{self.stage}/{self.fingerprint}/parts"
        names = (key.rsplit("/", 1)[1] for key in self.store.backend.list(prefix))
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def part_path(self, entry: FileEntry) -> Path:
        """A verified local copy of a part's file."""
        return self._objects.path(entry)

    def part_paths(self, record: PartRecord) -> list[Path]:
        """Verified local copies of a part's files, in order, several fetched at a time."""
        return self._objects.paths(record.files)

    def adopt_part(self, record: PartRecord) -> None:
        """Make a part's files content of the artifact."""
        self.files.extend(record.files)

    def drop_part(self, name: str, keep: Iterable[FileEntry] = ()) -> None:
        """Remove a part that a later one replaces: its record first, then the files nothing else names."""
        record = self.part(name)
        if record is None:
            return
        self.store.backend.delete(self._part_key(name))
        dropped = {self._objects.key(entry) for entry in record.files} - {self._objects.key(entry) for entry in keep}
        in_parallel(self.store.backend.delete, sorted(dropped))

    def clean(self) -> None:
        """Remove the scratch folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _part_key(self, name: str) -> str:
        return f"{self.stage}/{self.fingerprint}/parts/{name}.json"

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.clean()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Parquet with zstd and page checksums: without them a flipped bit reads back wrong in silence."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
