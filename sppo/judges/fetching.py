"""A judge's files, brought to this machine: from a folder, from the hub, or from object storage.

A folder of object storage is listed and downloaded through the store's own file access, where the traps of object stores end.
What was hashed of it is remembered in scratch by what the server says of each object, so looking again downloads nothing.
"""

import fnmatch
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sppo.errors import JudgeError, StoreError
from sppo.fingerprint import digest_of, file_sha256
from sppo.store.backend import open_backend

RECORD = "hashes.json"


def from_hub(model: str, revision: str, patterns: Sequence[str], without: Sequence[str] = ()) -> Path:
    """A model's files of these names, downloaded from the hub or found in its cache. Raises JudgeError if neither has them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(without) or None)
        )
    except (OSError, ValueError, RevisionResolutionError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise JudgeError(
            f"judge {model} at {revision} cannot be fetched from the hub{offline}: {' '.join(str(error).split())[:300]}; "
            "check the name and the network, or download it elsewhere and give source: {kind: folder, path: ..}"
        ) from error


def local_path(path: str) -> Path | None:
    """A folder of this machine; None for a URL of object storage."""
    parts = urlsplit(path)
    if parts.scheme == "file":
        return Path(parts.netloc + parts.path)
    return None if "://" in path else Path(os.path.expanduser(path))


@dataclass(frozen=True)
class Remote:
    """One object of a folder."""

    name: str
    size: int
    mark: str
    """What changes with its content: the server's ETag, or when it was written."""


class ObjectFolder:
    """A folder of object storage, as it is now.

    Raises JudgeError for a URL with credentials, a store that cannot be read, or a folder without files of these names."""

    def __init__(self, url: str, patterns: Sequence[str], without: Sequence[str] = ()) -> None:
        self.url = url
        try:
            backend: Any = open_backend(url)
            names = [key for key in backend.list("") if "/" not in key]
            wanted = _matching(names, patterns, without)
            infos = [backend.filesystem.info(f"{backend.root}/{name}") for name in wanted]
        except (StoreError, OSError) as error:
            raise JudgeError(f"judge folder: {error}") from error
        if not wanted:
            found = ", ".join(sorted(names)[:12]) or "nothing"
            raise JudgeError(
                f"judge folder {url} has {found}; expected a judge's config.json, *.safetensors and tokenizer files"
            )
        self._backend = backend
        self.files = [Remote(name, int(info["size"]), _mark(info)) for name, info in zip(wanted, infos, strict=True)]
        self._folder = _scratch() / "judges" / digest_of([url, [[file.name, file.size, file.mark] for file in self.files]])

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file, by name; downloads the folder if it was never hashed as it is now."""
        record = self._folder / RECORD
        if not record.is_file():
            folder = self.fetch()
            hashes = {file.name: file_sha256(folder / file.name) for file in self.files}
            _write(record, json.dumps(hashes).encode())
        return dict(json.loads(record.read_text()))

    def fetch(self) -> Path:
        """A local copy. Raises JudgeError for an object that changed or broke on the way."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            path = self._folder / file.name
            if not (path.is_file() and path.stat().st_size == file.size):
                self._download(file, path)
        return self._folder

    def drop(self) -> None:
        """Removes the copy, once the store has the files; their hashes stay."""
        for file in self.files:
            (self._folder / file.name).unlink(missing_ok=True)

    def _download(self, file: Remote, path: Path) -> None:
        part = path.with_name(f".{file.name}.{os.getpid()}")
        part.touch()
        try:
            sha256 = self._backend.get_file(file.name, part)
        except StoreError as error:
            part.unlink()
            raise JudgeError(f"judge folder: {error}") from error
        size = part.stat().st_size
        if sha256 is None or size != file.size:
            part.unlink()
            raise JudgeError(
                f"judge folder {self.url}: {file.name} arrived with {size} bytes; expected {file.size}: "
                "it is being changed, or the line broke; run again"
            )
        part.replace(path)


def _matching(names: Sequence[str], patterns: Sequence[str], without: Sequence[str]) -> list[str]:
    def any_of(name: str, forms: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(name, form) for form in forms)

    found = sorted(name for name in names if any_of(name, patterns) and not any_of(name, without))
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if found and pickled and not fnmatch.filter(found, "*.safetensors"):
        raise JudgeError(
            f"the judge has its weights in {pickled[0]}, a pickle, which can run code when opened; expected *.safetensors: "
            "use a revision that has them, or convert it with safetensors where you trust its source"
        )
    return found


def _mark(info: dict[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(key)), ""))


def _scratch() -> Path:
    return Path(os.environ.get("SPPO_SCRATCH") or Path.home() / ".cache" / "sppo")


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
