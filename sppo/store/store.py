"""The store: `build` a step unless its fingerprint is there already. This is the whole of resuming.

An artifact is `<root>/<stage>/<fingerprint>/`: its files under keys that hold their sha256, then
`manifest.json`, last and once.
No manifest, no artifact. Heavy stages commit parts (chunks, checkpoints) under the same fingerprint as they finish, so a
resumed stage does only what is missing.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from sppo import __version__
from sppo.errors import CorruptArtifactError, StoreError
from sppo.progress import Report, silent
from sppo.store.artifact import Artifact
from sppo.store.backend import Backend, open_backend
from sppo.store.manifest import FileEntry, Manifest, PartRecord, identity_difference, parse_record
from sppo.store.objects import Objects
from sppo.store.parallel import in_parallel
from sppo.store.scratch import open_scratch
from sppo.store.step import Identity, Outcome, Step

log = logging.getLogger(__name__)

REFERENCE = re.compile(r"^[a-z][a-z-]{0,40}/[0-9a-f]{64}$")


class Store:
    """Artifacts below one URL: a folder, `file://`, `s3://bucket/prefix`, `memory://`.

    scratch: a local folder for work in progress, logs and copies of remote objects; $SPPO_SCRATCH or ~/.cache/sppo if none is
    given."""

    def __init__(self, url: str, scratch: Path | None = None) -> None:
        self.url = url
        self.backend: Backend = open_backend(url)
        self.scratch = scratch or Path(os.environ.get("SPPO_SCRATCH") or Path.home() / ".cache" / "sppo")

    def check_writable(self) -> None:
        """Write, read back and delete a small record. Raises StoreError naming the store, before any work starts."""
        key = f"checks/{time.time_ns()}"
        if not self.backend.create(key, b"writable"):  # which reads it back
            raise StoreError(f"the store at {self.url} did not keep a test record; check that it is writable")
        if self.backend.create(key, b"again"):
            raise StoreError(
                f"the store at {self.url} let a record be created twice; expected create-once writes (If-None-Match): "
                "two runs could overwrite each other, so use a server that supports them"
            )
        self.backend.delete(key)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact of a fingerprint, its files' sizes checked; None if nothing is committed.

        Raises CorruptArtifactError for a file that is missing or has another size."""
        key = f"{stage}/{fingerprint}/manifest.json"
        content = self.backend.read(key)
        if content is None:
            return None
        manifest = parse_record(Manifest, content, key)
        Objects(self.backend, self.scratch, stage, fingerprint).check((*manifest.files, *manifest.logs))
        return Artifact(self.backend, manifest, self.scratch)

    def open(self, reference: str) -> Artifact:
        """The artifact of `stage/fingerprint`. Raises StoreError if it is not there."""
        if not REFERENCE.fullmatch(reference):
            raise StoreError(f"artifact reference {reference!r}; expected stage/ and 64 hex digits")
        stage, fingerprint = reference.split("/")
        artifact = self.find(stage, fingerprint)
        if artifact is None:
            raise StoreError(f"no artifact {reference} in the store at {self.url}; run the iteration that makes it")
        return artifact

    def workspace(self, stage: str, fingerprint: str, report: Report = silent) -> "Workspace":
        """A place to make the artifact of a fingerprint in; also how a worker process commits parts of it."""
        return Workspace(self, stage, fingerprint, report)

    def build(self, step: Step, report: Report = silent) -> Artifact:
        """The step's artifact: the committed one, or made now and committed."""
        return self.build_together([step.identity], lambda workspaces: [step.run(workspaces[0])], report)[0]

    def build_together(
        self,
        identities: Sequence[Identity],
        run: "Callable[[Sequence[Workspace]], Sequence[Outcome]]",
        report: Report = silent,
    ) -> list[Artifact]:
        """Several artifacts of one effort, such as two sets of prompts answered by one engine load.

        `run` gets the workspaces of the identities that are not committed, in their order, and returns an outcome for each."""
        found = {identity.fingerprint: self._adopt(identity) for identity in identities}
        missing = [identity for identity in identities if found[identity.fingerprint] is None]
        if missing:
            started = time.monotonic()
            workspaces = [self.workspace(identity.stage, identity.fingerprint, report) for identity in missing]
            try:
                outcomes = run(workspaces)
                seconds = time.monotonic() - started
                for identity, workspace, outcome in zip(missing, workspaces, outcomes, strict=True):
                    found[identity.fingerprint] = self._commit(identity, workspace, outcome, seconds)
            finally:
                for workspace in workspaces:
                    workspace.clean()
        return [artifact for identity in identities if (artifact := found[identity.fingerprint]) is not None]

    def _adopt(self, identity: Identity) -> Artifact | None:
        artifact = self.find(identity.stage, identity.fingerprint)
        if artifact is None:
            return None
        difference = identity_difference(artifact.manifest, identity.stage, _as_json(identity.recipe), identity.input_digests)
        if difference:
            raise CorruptArtifactError(f"{artifact.reference} is not what its fingerprint says: {difference}; delete it")
        log.info("%s: nothing to do, committed -> %s", identity.stage, artifact.name)
        return artifact

    def _commit(self, identity: Identity, workspace: "Workspace", outcome: Outcome, seconds: float) -> Artifact:
        manifest = Manifest(
            stage=identity.stage,
            version=identity.version,
            fingerprint=identity.fingerprint,
            recipe=_as_json(identity.recipe),
            inputs=identity.input_digests,
            lineage=identity.lineage,
            files=tuple(sorted(workspace.files, key=lambda entry: entry.name)),
            logs=tuple(sorted(workspace.logs, key=lambda entry: entry.name)),
            counts=dict(outcome.counts),
            metrics={**outcome.metrics, **workspace.metrics},
            seconds=round(seconds, 3),
            code_version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        created = self.backend.create(f"{identity.stage}/{identity.fingerprint}/manifest.json", manifest.to_bytes())
        for key in self.backend.list(f"{identity.stage}/{identity.fingerprint}/work"):
            self.backend.delete(key)  # who was at work: of no use any more
        artifact = self.find(identity.stage, identity.fingerprint)
        if artifact is None:
            raise StoreError(f"the manifest of {identity.stage}/{identity.fingerprint} was written and is not there")
        if not created:
            log.info("%s: another writer committed first, its artifact is used", identity.stage)
        log.info("%s: %s, %.1f s -> %s", identity.stage, outcome.summary, seconds, artifact.name)
        return artifact


def _as_json(value: Mapping[str, object]) -> dict[str, object]:
    return dict(json.loads(json.dumps(dict(value))))  # tuples become lists, as in a manifest read back


class Workspace:
    """Where an artifact is made: a scratch folder, the files committed so far, the parts of earlier attempts."""

    def __init__(self, store: Store, stage: str, fingerprint: str, report: Report) -> None:
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
        if self.store.backend.create(self._part_key(name), record.to_bytes()):
            return record
        existing = self.part(name)
        if existing is None:
            raise StoreError(f"part {name} of {self.stage}/{self.fingerprint} was neither written nor found")
        return existing

    def part(self, name: str) -> PartRecord | None:
        """A committed part, or None."""
        content = self.store.backend.read(self._part_key(name))
        return None if content is None else parse_record(PartRecord, content, self._part_key(name))

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
