"""Datasets of prompts as rows: JSONL and Parquet on this machine, datasets of the hub.

A row that cannot be read is still a row: it carries what is wrong with it, so that every row is accounted for.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.configuration import parse_json
from sppo.errors import PromptError
from sppo.explanation import kind_of
from sppo.fingerprint import digest_of, file_sha256

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a dataset."""

    where: str
    """File and line or row, counted from 1, for messages."""
    values: dict[str, Any]
    """The wanted columns that it has."""
    problem: str = ""
    """Why it cannot be read, if it cannot."""


@dataclass
class Rows:
    """A dataset, the wanted columns of it."""

    name: str
    columns: list[str]
    """All it has, wanted or not."""
    rows: list[Row] = field(default_factory=list)

    def require(self, column: str, key: str) -> None:
        """Raises PromptError if no row has the column, naming those there are, the nearest one, and the recipe's key."""
        if column in self.columns:
            return
        near = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.5)
        hint = f"the nearest is {near[0]!r}" if near else "none is near"
        raise PromptError(
            f"{self.name} has no column {column!r}; it has {', '.join(self.columns) or 'no columns'}; {hint}: set {key}"
        )


def is_local(reference: str) -> bool:
    """Whether a dataset is on this machine: it exists, or cannot be a hub id."""
    return Path(os.path.expanduser(reference)).exists() or reference.endswith(SUFFIXES) or not HUB_ID.match(reference)


def split_revision(reference: str) -> tuple[str, str]:
    """`owner/name@revision` as its two parts; `main` where none is given."""
    name, _, revision = reference.partition("@")
    return name, revision or "main"


def files_of(reference: str) -> list[Path]:
    """A local dataset's files: the file itself, or the JSONL and Parquet files of a folder and of its `data` folder, sorted.

    Raises PromptError if there are none."""
    path = Path(os.path.expanduser(reference))
    if path.is_file():
        return [path]
    found = [file for folder in (path, path / "data") if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [file for file in found if file.suffix in SUFFIXES]
    if not files:
        kind = "holds no .parquet or .jsonl file" if path.is_dir() else "does not exist"
        raise PromptError(f"the dataset {reference} {kind}; expected a file, a folder of them or a hub id: mend prompts.source")
    return files


def split_files(reference: str, split: str) -> list[Path]:
    """The local files of one split: `<split>.parquet` or `<split>-*.parquet`, in the folder, in its `data`, or behind a prefix.

    Raises PromptError naming the files there are."""
    path = Path(os.path.expanduser(reference))
    places = [(path, ""), (path / "data", "")] if path.is_dir() else [(path.parent, path.name)]
    name = re.compile(rf"^{re.escape(split)}(-.*)?\.(parquet|jsonl)$")
    seen = []
    for folder, prefix in places:
        there = sorted(file for file in folder.glob("*") if file.is_file() and file.name.startswith(prefix))
        seen += there
        found = [file for file in there if name.match(file.name.removeprefix(prefix).lstrip("-"))]
        if found:
            return found
    listed = ", ".join(file.name for file in seen[:12]) or "nothing"
    raise PromptError(
        f"no split {split!r} in {reference}; expected {split}.parquet or data/{split}-*.parquet, found {listed}: "
        "mend prompts.source.dataset, or lower iterations"
    )


def digest(files: Sequence[Path]) -> str:
    """Content digest of local files; their folder's name does not count."""
    return digest_of([[file.name, file_sha256(file)] for file in files])


def read(files: Sequence[Path], wanted: Sequence[str]) -> Rows:
    """The rows of local files, in order."""
    parts = [_read_parquet(file, wanted) if file.suffix == ".parquet" else _read_jsonl(file, wanted) for file in files]
    columns = dict.fromkeys(column for part in parts for column in part.columns)
    name = parts[0].name if len(parts) == 1 else f"{parts[0].name} and {len(parts) - 1} more"
    return Rows(name, list(columns), [row for part in parts for row in part.rows])


def read_hub(name: str, revision: str, split: str | None, wanted: Sequence[str]) -> Rows:
    """The rows of one split of a hub dataset, or of all its splits. Raises PromptError if it cannot be loaded."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError: of a dataset that is a script, which is not run
        raise PromptError(
            f"cannot load dataset {name}{f' split {split}' if split else ''} at {revision[:8]}: "
            f"{' '.join(str(problem).split())}; check the network and the names in prompts.source, or give a local file"
        ) from problem
    parts = {split: loaded} if split is not None else dict(loaded)
    found = Rows(name, [])
    for part, dataset in parts.items():
        found.columns += [column for column in dataset.column_names if column not in found.columns]
        columns = [column for column in wanted if column in dataset.column_names]
        batches = dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000) if columns else ()
        rows: list[Row] = []
        for batch in batches:
            rows += _rows_of(batch, f"{name} {part} row", len(rows))
        found.rows += rows
    return found


def _read_parquet(path: Path, wanted: Sequence[str]) -> Rows:
    try:
        source = pq.ParquetFile(path, page_checksum_verification=True)
        columns = source.schema_arrow.names
        table = source.read(columns=[column for column in wanted if column in columns])
    except (OSError, pa.ArrowException) as problem:
        raise PromptError(f"cannot read {path.name} as Parquet: {problem}; write it again, or mend prompts.source") from problem
    return Rows(path.name, columns, list(_rows_of(table, f"{path.name} row")))


def _rows_of(table: pa.Table, place: str, before: int = 0) -> Iterator[Row]:
    for number in range(0, table.num_rows, 1000):
        chunk = table.slice(number, 1000)
        try:
            rows: list[dict[str, Any] | None] = chunk.to_pylist()
        except UnicodeDecodeError:
            rows = [None] * len(chunk)
        for offset, values in enumerate(rows):
            where = f"{place} {before + number + offset + 1}"
            yield Row(where, values) if values is not None else _single(chunk.slice(offset, 1), where)


def _single(table: pa.Table, where: str) -> Row:
    try:
        return Row(where, table.to_pylist()[0])
    except UnicodeDecodeError as problem:
        return Row(where, {}, f"is not UTF-8: {problem.reason}")


def _read_jsonl(path: Path, wanted: Sequence[str]) -> Rows:
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as problem:
        raise PromptError(f"cannot read {path}: {problem.strerror}; mend prompts.source") from problem
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # never at U+2028, which JSON allows within text
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        values, cause = _parse(line)
        columns.update(dict.fromkeys(values))
        rows.append(Row(where, {column: values[column] for column in wanted if column in values}, cause))
    return Rows(path.name, list(columns), rows)


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        value = parse_json(line.decode("utf-8"), _refuse_constant)
    except UnicodeDecodeError as problem:
        return {}, f"is not UTF-8: {problem.reason}"
    except ValueError as problem:
        return {}, f"is not JSON: {problem}"
    if not isinstance(value, dict):
        return {}, f"holds {kind_of(value)}, and no keys"
    return value, ""


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
