"""What an artifact says of itself: every file with size and sha256, what it was made from, and what was counted."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sppo.errors import CorruptArtifactError
from sppo.explanation import explain, name_of
from sppo.fingerprint import digest_of
from sppo.store.seal import check_seal, with_seal, without_seal

FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")
Record = TypeVar("Record", bound=BaseModel)
SHA256 = r"^[0-9a-f]{64}$"
ABSENT = "nothing"
"""Shown for a value that one of two manifests does not have."""


class PackSlice(BaseModel):
    """Where a small file lies that was stored in one object with others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=SHA256)
    """Of the whole pack."""
    size: int = Field(ge=0)
    """Bytes of the whole pack."""
    offset: int = Field(ge=0)
    """Where the file's first byte is."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Plain file name, such as `model.safetensors`."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=SHA256)
    pack: PackSlice | None = None
    """None for a file that is an object of its own."""

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r}; expected letters, digits, '.', '_' and '-'")
        return name

    def key(self, stage: str, fingerprint: str) -> str:
        """The object that holds the bytes: addressed by content, so two writers can never mix their files."""
        if self.pack is not None:
            return f"{stage}/{fingerprint}/packs/{self.pack.sha256[:16]}"
        return f"{stage}/{fingerprint}/files/{self.sha256[:16]}/{self.name}"

    @property
    def object_size(self) -> int:
        """Bytes of that object."""
        return self.size if self.pack is None else self.pack.size


class PartRecord(BaseModel):
    """A committed piece of an unfinished artifact: a chunk of responses, a training checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    files: tuple[FileEntry, ...]
    counts: dict[str, int] = {}

    def to_bytes(self, key: str) -> bytes:
        """Sealed, for this key."""
        return with_seal(self.model_dump_json(indent=1, exclude_none=True), key)


class Manifest(BaseModel):
    """The record that makes an artifact exist. Written last, once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: int
    fingerprint: str = Field(pattern=SHA256)
    recipe: dict[str, Any]
    """The part of the recipe that the stage reads."""
    inputs: dict[str, str]
    """Content digest of each input."""
    lineage: dict[str, str]
    """Where each input came from: `stage/fingerprint`, or an outside source in words."""
    files: tuple[FileEntry, ...]
    """The content."""
    logs: tuple[FileEntry, ...] = ()
    """Kept beside the content and left out of its digest: metrics with timings, worker logs."""
    counts: dict[str, int]
    metrics: dict[str, float]
    seconds: float
    """Wall time of the attempt that committed."""
    code_version: str
    created: str
    """UTC, ISO 8601."""

    @property
    def digest(self) -> str:
        """Content digest: sha256 over the names and sha256s of the content files."""
        return content_digest(self.files)

    @property
    def made_from(self) -> list[str]:
        """References of the artifacts that it was made from, each once."""
        named = dict.fromkeys(source.partition("#")[0] for source in self.lineage.values())
        return [source for source in named if not source.startswith("outside:")]

    def to_bytes(self, key: str) -> bytes:
        """Sealed, for this key."""
        values = self.model_dump(mode="json", exclude_none=True)
        return with_seal(json.dumps(values, indent=1, sort_keys=True, allow_nan=False), key)


def mend(stage: str, fingerprint: str) -> str:
    """What to do about an object that is missing or damaged."""
    return f"delete the folder {stage}/{fingerprint} of the store and run again: only this artifact is recomputed"


def content_digest(files: tuple[FileEntry, ...]) -> str:
    """sha256 over the sorted (name, sha256) of files: what they contain, not where they lie or how they were made."""
    return digest_of(sorted([entry.name, entry.sha256] for entry in files))


def parse_record(
    kind: type[Record], content: bytes, key: str, root: str = "", check: Callable[[Record], None] = lambda record: None
) -> Record:
    """A record from the bytes at its key. Raises CorruptArtifactError naming the key if they are not, to the last one, those
    that were written there.

    root: shown before the key, where it is not in a run's store. check: raises for a record that is valid and another than it
    should be; it is asked before the seal, since it can say more."""
    shown = f"{root}/{key}" if root else key
    try:
        record = kind.model_validate_json(without_seal(content))
    except ValidationError as error:
        problems = "; ".join(explain(kind, error.errors())[:3])
        raise CorruptArtifactError(
            f"{shown} is not a valid {name_of(kind)}: {problems}; delete {shown} and {'fetch' if root else 'run'} again"
        ) from error
    check(record)
    check_seal(content, key, shown)
    return record


def identity_difference(manifest: Manifest, expected: Mapping[str, Any]) -> str:
    """How a manifest's fields differ from those expected, each value of the recipe and each input by itself; empty if they do
    not."""
    differences = []
    for name, wanted in expected.items():
        found = getattr(manifest, name)
        if isinstance(found, dict):
            pairs = [(f"{name}.{key}", found.get(key, ABSENT), wanted.get(key, ABSENT)) for key in sorted({*found, *wanted})]
        else:
            pairs = [(name, found, wanted)]
        differences += [f"{field} {has!r} instead of {want!r}" for field, has, want in pairs if has != want]
    return "; ".join(differences)
