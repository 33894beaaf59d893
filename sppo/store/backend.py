"""The few operations an artifact store needs of a file system.

Keys are relative, `/`-separated, and never leave the root. Records are created once: of two writers exactly one wins.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from sppo.errors import StoreError
from sppo.store.local import LocalBackend


class Backend(Protocol):
    """Keys to bytes, with atomic writes and create-once records. One backend serves several threads."""

    def read(self, key: str) -> bytes | None:
        """The whole object, or None where there is none."""

    def get_file(self, key: str, path: Path) -> str | None:
        """Write the object to a local file: the sha256 of what arrived, or None where there is no object."""

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Bytes of each object, None where there is none. Each is asked for: no listing is believed."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a small record unless the key exists; False if another writer's record is there."""

    def replace(self, key: str, content: bytes) -> None:
        """Write a small record, atomically replacing what was there."""

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file; readers see all of it or nothing."""

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix, sorted. For people and garbage collection; no commit decision rests on it."""

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens where there is none."""

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine's own disk, or None for a remote store."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server that does not answer."""

    read_s: float
    """For an answer to one request."""

    @property
    def connect_s(self) -> float:
        """For a connection."""
        return min(10.0, self.read_s)

    @property
    def stall_s(self) -> float:
        """For a large transfer to move on at all: all of its parts may be under way on a slow line."""
        return 5 * self.read_s


def read_patience() -> Patience:
    """From $SPPO_STORE_TIMEOUT_S, a minute if it is not set. Raises StoreError for anything but a positive number."""
    text = os.environ.get("SPPO_STORE_TIMEOUT_S") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise StoreError(f"SPPO_STORE_TIMEOUT_S is {text!r}; expected seconds to wait for an answer, such as 60")
    return Patience(seconds)


def open_backend(url: str) -> Backend:
    """Backend of a store URL: a folder, `file://`, `s3://bucket/prefix`, or `memory://` (tests).

    Raises StoreError for a URL with credentials in it, without a bucket, or of an unknown scheme."""
    parts = urlsplit(url)
    _refuse_credentials(url, "store URL")
    if parts.scheme in ("", "file"):
        path = Path(parts.netloc + parts.path if parts.scheme else url).expanduser().resolve()
        return LocalBackend(path)
    from sppo.store.remote import memory_backend, s3_backend  # fsspec, which a folder does not need

    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreError(f"store URL {url!r} names no bucket; expected s3://bucket/prefix")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            _refuse_credentials(os.environ.get(name, ""), name)  # clients' errors echo it
        return s3_backend(parts.netloc, parts.path.strip("/"), read_patience())
    if parts.scheme == "memory":
        return memory_backend(f"/{parts.netloc}{parts.path}".rstrip("/"))
    raise StoreError(f"store URL {url!r} has the scheme {parts.scheme!r}; expected a folder, file://, s3:// or memory://")


def _refuse_credentials(url: str, name: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{parts.hostname or ''}{parts.path}"
        raise StoreError(
            f"{name} {shown} holds credentials; expected none: put them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile, and take them out of the URL"
        )
