"""The few operations an artifact store needs of a file system.

Keys are relative, `/`-separated, and never leave the root. Records are created once: of two writers exactly one wins.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from sppo.errors import StoreError
from sppo.store.clock import Written
from sppo.store.local import LocalBackend
from sppo.store.waiting import Patience, read_patience


class Backend(Protocol):
    """Keys to bytes, with atomic writes and create-once records. One backend serves several threads."""

    @property
    def name(self) -> str:
        """Where the store is, for messages; no secret in it."""

    def read(self, key: str) -> bytes | None:
        """The whole object, or None where there is none."""

    def get_file(self, key: str, path: Path) -> str | None:
        """Write the object to a local file: the sha256 of what arrived, or None where there is no object."""

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Bytes of each object, None where there is none. Each is asked for: no listing is believed."""

    def written(self, key: str) -> Written | None:
        """When the object was last written, or None where there is none."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a small record unless the key exists, and read it back; False if another writer's record is there.

        An answer that was lost, or that says of our own record that it exists, changes nothing: what lies there decides."""

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


def open_backend(url: str, patience: Patience | None = None) -> Backend:
    """Backend of a store URL: a folder, `file://`, `s3://bucket/prefix`, or `memory://` (tests). patience: None for what the
    environment says.

    Raises StoreError for a URL with credentials in it, without a bucket, or of an unknown scheme."""
    refuse_credentials(url, "store URL")
    parts = _split(url, "store URL")
    if parts.scheme in ("", "file"):
        path = Path(os.path.expanduser(parts.netloc + parts.path if parts.scheme else url)).resolve()
        return LocalBackend(path)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreError(f"store URL {url!r} names no bucket; expected s3://bucket/prefix")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            refuse_credentials(os.environ.get(name, ""), name)  # clients' errors echo it
        from sppo.store.bucket import s3_backend  # fsspec, which a folder does not need

        return s3_backend(parts.netloc, parts.path.strip("/"), patience or read_patience())
    if parts.scheme == "memory":
        from sppo.store.remote import memory_backend

        return memory_backend(f"/{parts.netloc}{parts.path}".rstrip("/"))
    raise StoreError(f"store URL {url!r} has the scheme {parts.scheme!r}; expected a folder, file://, s3:// or memory://")


def _split(url: str, name: str) -> SplitResult:
    try:
        if "\0" in url:
            raise ValueError("it holds NUL")
        os.fsencode(url)  # no name of a file can hold a lone surrogate
        return urlsplit(url)
    except ValueError as problem:  # the URL may hold a secret where nobody expects it: it is not repeated
        raise StoreError(f"{name} is no address ({problem}); expected a folder, file:// or s3://bucket/prefix") from problem


def refuse_credentials(url: str, name: str) -> None:
    """Raises StoreError for a URL with a user or password in it, which it does not repeat. name: what the URL is."""
    parts = _split(url, name)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{parts.hostname or ''}{parts.path}"
        raise StoreError(
            f"{name} {shown} holds credentials; expected none: put them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile, and take them out of the URL"
        )
