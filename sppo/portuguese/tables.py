"""The tasks' rows, fetched once where there is a hub, then read from a folder or a bucket and never from the hub.

    <root>/<dataset>[/<config>]/<split>.parquet     the columns that the tasks read
    <root>/manifest.json                            each file's sha256, and where it came from

A file that is not what the manifest says is refused.
"""

import hashlib
import io
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sppo.configuration import Frozen
from sppo.errors import CorruptArtifactError, EvaluationError
from sppo.fingerprint import digest_of
from sppo.portuguese import prompts
from sppo.portuguese.specification import LeaderboardTask, Row, Table
from sppo.portuguese.tasks import TASKS
from sppo.progress import Progress, Report, silent
from sppo.store.backend import Backend, open_backend
from sppo.store.manifest import SHA256, parse_record
from sppo.store.seal import sealed
from sppo.store.workspace import write_parquet

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class TableFile(Frozen):
    """One split of a dataset."""

    sha256: Annotated[str, Field(pattern=SHA256)]
    rows: int
    revision: str
    """Commit of the dataset; of a clone its path."""


class TablesManifest(Frozen):
    """What a root holds, by the files' keys."""

    files: dict[str, TableFile]


@dataclass(frozen=True)
class Tables:
    """A root that was fetched before."""

    root: str
    """A folder, `s3://bucket/prefix` or `memory://`."""
    manifest: TablesManifest
    backend: Backend

    @classmethod
    def open(cls, root: str) -> "Tables":
        """Raises EvaluationError if nothing was fetched there."""
        backend = open_backend(root)
        content = backend.read(MANIFEST)
        if content is None:
            raise EvaluationError(
                f"no {MANIFEST} in {root}; expected the tables of the Portuguese tasks: fetch them there once with "
                f"sppo fetch-tables {root}, on a machine that reaches the hub"
            )
        return cls(root, parse_record(TablesManifest, content, MANIFEST, root), backend)

    def digest(self, tasks: Iterable[LeaderboardTask]) -> str:
        """Of the files that these tasks read, wherever they lie."""
        return digest_of(sorted({(key, self._entry(key).sha256) for task in tasks for key in keys(task)}))

    def rows(self, task: LeaderboardTask, split: str) -> list[Row]:
        """A whole split, verified.

        Raises CorruptArtifactError if its bytes are not those of the manifest, EvaluationError if a column is not there."""
        key = table_key(task.table, split)
        expected = self._entry(key).sha256
        content = self.backend.read(key)
        found = None if content is None else hashlib.sha256(content).hexdigest()
        if content is None or found != expected:
            raise CorruptArtifactError(
                f"{key} in {self.root} is {'missing' if found is None else f'another file, sha256 {found[:16]}'}; expected "
                f"{expected[:16]} as its {MANIFEST} says: fetch the tables again"
            )
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
        absent = [column for column in task.columns if column not in table.column_names]
        if absent:
            raise EvaluationError(f"{key} in {self.root} has no column {absent[0]!r}; it has {', '.join(table.column_names)}")
        rows: list[Row] = table.select(list(task.columns)).to_pylist()
        return rows

    def shots(self, task: LeaderboardTask) -> list[Row]:
        """The task's shots, in their order."""
        return prompts.shots(task, self.rows(task, task.shot_split))

    def asked_rows(self, task: LeaderboardTask) -> list[Row]:
        """The task's questions, in their order."""
        return prompts.asked_rows(task, self.rows(task, task.test_split))

    def _entry(self, key: str) -> TableFile:
        if key not in self.manifest.files:
            raise EvaluationError(
                f"{self.root} holds no {key}; it holds {', '.join(self.manifest.files)}: fetch the tables again"
            )
        return self.manifest.files[key]


def table_key(table: Table, split: str) -> str:
    """Where a split lies below the root."""
    return f"{table.folder}/{split}.parquet"


def keys(task: LeaderboardTask) -> list[str]:
    """The files that a task reads."""
    return [table_key(task.table, split) for split in task.splits]


def write(root: str, tables: Mapping[str, tuple[pa.Table, str]]) -> Tables:
    """Tables with their revisions, by key, into a root; the manifest comes last and keeps other files' entries."""
    backend = open_backend(root)
    before = backend.read(MANIFEST)
    files = {} if before is None else dict(parse_record(TablesManifest, before, MANIFEST, root).files)
    with tempfile.TemporaryDirectory() as folder:
        for key, (table, revision) in tables.items():
            path = Path(folder) / "table.parquet"
            write_parquet(table, path)
            backend.put_file(key, path)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            files[key] = TableFile(sha256=sha256, rows=table.num_rows, revision=revision)
    manifest = TablesManifest(files=dict(sorted(files.items())))
    backend.replace(MANIFEST, sealed(manifest, MANIFEST))
    return Tables.open(root)


def fetch(
    root: str,
    tasks: Sequence[LeaderboardTask] = tuple(TASKS.values()),
    clones: Path | None = None,
    revision: str = "main",
    report: Report = silent,
) -> Tables:
    """Copy what the tasks read from the hub into a root, once.

    clones: a folder of datasets cloned from the hub, `<owner>/<name>`, to be read instead of it.
    Raises EvaluationError for a dataset that cannot be loaded, or lacks a column or a shot."""
    wanted: dict[str, tuple[Table, str, set[str]]] = {}
    for task in tasks:
        for split in task.splits:
            _, _, columns = wanted.setdefault(table_key(task.table, split), (task.table, split, set()))
            columns.update(task.columns)
    loaded: dict[str, tuple[pa.Table, str]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for done, (key, (table, split, columns)) in enumerate(wanted.items()):
            report(Progress(stage="fetch", done=done, total=len(wanted), unit="tables", note=key))
            loaded[key] = _load(table, split, sorted(columns), clones, revision, cache)
        tables = write(root, loaded)
    for task in tasks:
        shown, asked = tables.shots(task), tables.asked_rows(task)
        log.info("%s: %d shots, %d questions", task.name, len(shown), len(asked))
    return tables


def _load(table: Table, split: str, columns: list[str], clones: Path | None, revision: str, cache: str) -> tuple[pa.Table, str]:
    import datasets
    from datasets.exceptions import DatasetsError

    source = table.dataset if clones is None else str(clones / table.dataset)
    commit = source if clones is not None else _commit(table.dataset, revision)
    where: dict[str, Any] = {} if clones is not None else {"revision": commit}
    try:
        loaded = datasets.load_dataset(source, table.config, split=split, cache_dir=cache, **where)
    except (OSError, ValueError, RuntimeError, DatasetsError) as problem:  # RuntimeError: of a dataset that is a script
        raise EvaluationError(
            f"cannot load split {split} of {table.folder} from {'the hub' if clones is None else source}: "
            f"{' '.join(str(problem).split())}; check the network, or clone the dataset; for one that is a script, the hub "
            "keeps a copy of its own as revision refs/convert/parquet"
        ) from problem
    absent = [column for column in columns if column not in loaded.column_names]
    if absent:
        raise EvaluationError(
            f"{table.folder} at {commit} has no column {absent[0]!r}; it has {', '.join(loaded.column_names)}: "
            "the dataset has changed, so name an earlier revision"
        )
    found: pa.Table = loaded.select_columns(columns).with_format("arrow")[:]
    return found.replace_schema_metadata(None), commit


def _commit(dataset: str, revision: str) -> str:
    from sppo.resolve import pin

    return pin("dataset", dataset, revision)
