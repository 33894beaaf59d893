"""What an artifact says of itself: every file with size and sha256, what it was made from, and what was counted."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sppo.errors import CorruptArtifactError
from sppo.fingerprint import digest_of

FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")
Record = TypeVar("Record", bound=BaseModel)
SHA256 = r"^[0-9a-f]{64}$"


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

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1, exclude_none=True) + "\n").encode()


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

    def to_bytes(self) -> bytes:
        return (
            json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, sort_keys=True, allow_nan=False) + "\n"
        ).encode()


def mend(stage: str, fingerprint: str) -> str:
    """What to do about an object that is missing or damaged."""
    return f"delete the folder {stage}/{fingerprint} of the store and run again: only this artifact is recomputed"


def content_digest(files: tuple[FileEntry, ...]) -> str:
    """sha256 over the sorted (name, sha256) of files: what they contain, not where they lie or how they were made."""
    return digest_of(sorted([entry.name, entry.sha256] for entry in files))


def parse_record(kind: type[Record], content: bytes, key: str) -> Record:
    """A manifest or part record from its bytes. Raises CorruptArtifactError naming the object."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CorruptArtifactError(
            f"{key} is not a valid {kind.__name__.lower()}: {where}: {first['msg']}; "
            f"delete {key} and run again: the stage is recomputed"
        ) from error


def identity_difference(manifest: Manifest, stage: str, recipe: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """Field by field, how a manifest's identity differs from the one expected; empty if it does not."""
    differences = []
    if manifest.stage != stage:
        differences.append(f"stage {manifest.stage!r} instead of {stage!r}")
    for name, found, wanted in (("recipe", manifest.recipe, recipe), ("inputs", manifest.inputs, inputs)):
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                differences.append(f"{name}.{key} {found.get(key)!r} instead of {wanted.get(key)!r}")
    return "; ".join(differences)
