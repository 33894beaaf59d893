"""The few operations an artifact store needs of a file system, and where each file system's traps end.

Keys are relative, `/`-separated, and never leave the root. Records are created once: of two writers exactly one wins.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import fsspec

from sppo.errors import StoreError

BLOCK_BYTES = 32 << 20


class Backend(Protocol):
    """Keys to bytes, with atomic writes and create-once records."""

    def read(self, key: str) -> bytes | None:
        """The whole object, or None where there is none."""

    def blocks(self, key: str) -> Iterator[bytes]:
        """The object in blocks of 32 MiB. Raises StoreError where there is none."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None where there is none."""

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


def open_backend(url: str) -> Backend:
    """Backend of a store URL: a folder, `file://`, `s3://bucket/prefix`, or `memory://` (tests).

    Raises StoreError for a URL with credentials in it, without a bucket, or of an unknown scheme."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        shown = f"{parts.scheme}://***@{parts.hostname or ''}{parts.path}"
        raise StoreError(
            f"store URL {shown} holds credentials; expected none: put them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a profile, and take them out of the URL"
        )
    if parts.scheme in ("", "file"):
        path = Path(parts.netloc + parts.path if parts.scheme else url).expanduser().resolve()
        return LocalBackend(path)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreError(f"store URL {url!r} names no bucket; expected s3://bucket/prefix")
        # The listing cache never expires and instances are shared: both would show us a store that no longer is.
        filesystem = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 5}},
        )
        return FsspecBackend(filesystem, f"{parts.netloc}{parts.path}".rstrip("/"))
    if parts.scheme == "memory":
        return FsspecBackend(fsspec.filesystem("memory"), f"/{parts.netloc}{parts.path}".rstrip("/"))
    raise StoreError(f"store URL {url!r} has the scheme {parts.scheme!r}; expected a folder, file://, s3:// or memory://")


class LocalBackend:
    """A folder on this machine. Objects appear by hard link or rename of a synced temporary file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / key

    def read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def blocks(self, key: str) -> Iterator[bytes]:
        try:
            stream = self._path(key).open("rb")
        except FileNotFoundError:
            raise StoreError(f"object {key} is missing from {self.root}") from None
        with stream:
            while block := stream.read(BLOCK_BYTES):
                yield block

    def size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _synced(self, key: str, blocks: Iterator[bytes]) -> Path:
        target = self._path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".writing-")
        except OSError as error:
            raise StoreError(
                f"cannot write {key} to the store at {self.root}: {error.strerror}; choose a folder you may write to"
            ) from error
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                for block in blocks:
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def create(self, key: str, content: bytes) -> bool:
        temporary = self._synced(key, iter([content]))
        try:
            os.link(temporary, self._path(key))
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def replace(self, key: str, content: bytes) -> None:
        self._synced(key, iter([content])).replace(self._path(key))

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as stream:
            blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
            self._synced(key, blocks).replace(self._path(key))

    def list(self, prefix: str) -> list[str]:
        base = self._path(prefix)
        files = (path for path in base.rglob("*") if path.is_file() and not path.name.startswith(".writing-"))
        return sorted(str(path.relative_to(self.root)) for path in files)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)


class FsspecBackend:
    """An fsspec file system: s3fs, or memory in tests."""

    def __init__(self, filesystem: "fsspec.AbstractFileSystem", root: str) -> None:
        self.filesystem = filesystem
        self.root = root

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes | None:
        try:
            return bytes(self.filesystem.cat_file(self._path(key)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {key} from the store at {self.root}: {error}") from error

    def blocks(self, key: str) -> Iterator[bytes]:
        size = self.size(key)
        if size is None:
            raise StoreError(f"object {key} is missing from {self.root}")
        for start in range(0, size, BLOCK_BYTES):
            yield bytes(self.filesystem.cat_file(self._path(key), start=start, end=min(start + BLOCK_BYTES, size)))

    def size(self, key: str) -> int | None:
        try:
            return int(self.filesystem.info(self._path(key))["size"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot look up {key} in the store at {self.root}: {error}") from error

    def create(self, key: str, content: bytes) -> bool:
        try:
            self.filesystem.pipe_file(self._path(key), content, mode="create")
        except FileExistsError:
            # A lost answer looks like "exists" although we won: what lies there decides.
            return self.read(key) == content
        except OSError as error:
            if self.read(key) is not None:
                return self.read(key) == content
            raise StoreError(f"cannot write {key} to the store at {self.root}: {error}") from error
        return self.read(key) == content

    def replace(self, key: str, content: bytes) -> None:
        try:
            self.filesystem.pipe_file(self._path(key), content)
        except OSError as error:
            raise StoreError(f"cannot write {key} to the store at {self.root}: {error}") from error

    def put_file(self, key: str, path: Path) -> None:
        try:
            self.filesystem.put_file(str(path), self._path(key))
        except OSError as error:
            raise StoreError(f"cannot upload {key} to the store at {self.root}: {error}") from error

    def list(self, prefix: str) -> list[str]:
        base = self._path(prefix)
        if not self.filesystem.exists(base):
            return []
        root = self.root.lstrip("/")
        return sorted(str(path).lstrip("/").removeprefix(f"{root}/") for path in self.filesystem.find(base))

    def delete(self, key: str) -> None:
        if self.size(key) is not None:
            self.filesystem.rm_file(self._path(key))

    def local_path(self, key: str) -> Path | None:
        return None
