"""A store behind fsspec, s3fs above all, and where its traps end.

s3fs is the file system: it writes every small record. Files move through a bulk client where one can serve (sppo.store.bulk).
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from sppo.errors import StoreError
from sppo.store.backend import Patience
from sppo.store.bulk import BulkClient, open_bulk
from sppo.store.parallel import in_parallel

BLOCK_BYTES = 32 << 20
REQUESTS = 32
"""Small requests under way at a time."""


def memory_backend(root: str) -> "RemoteBackend":
    """Objects of this process, for tests."""
    return RemoteBackend(fsspec.filesystem("memory"), root, (OSError,), {}, lambda: None)


def s3_backend(bucket: str, prefix: str, patience: Patience) -> "RemoteBackend":
    """Objects of a bucket, below a prefix; credentials, region and endpoint as every AWS client finds them."""
    from aiobotocore.session import AioSession
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.handlers import add_expect_header

    session = AioSession()
    # aiohttp waits without end for the server's leave to send a body, and each record would take two round trips
    session.unregister("before-call.s3", add_expect_header)
    # The listing cache never expires and instances are shared: both would show us a store that no longer is.
    filesystem = fsspec.filesystem(
        "s3",
        session=session,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": patience.connect_s,
            "read_timeout": patience.read_s,
            "retries": {"total_max_attempts": 3, "mode": "standard"},
            "max_pool_connections": REQUESTS,
            "request_checksum_calculation": "when_required",  # over TLS it is a trailer, which many servers cannot read
        },
    )
    filesystem.retries = 2  # each of them is three attempts: on its defaults a black hole takes half an hour
    root = f"{bucket}/{prefix}".rstrip("/")
    failures = (OSError, BotoCoreError, ClientError)
    parts = {"chunksize": 16 << 20, "max_concurrency": 8}  # its defaults would hold 500 MB
    return RemoteBackend(filesystem, root, failures, parts, lambda: open_bulk(bucket, prefix, patience))


class RemoteBackend:
    """An fsspec file system: s3fs, or memory in tests."""

    def __init__(
        self,
        filesystem: "fsspec.AbstractFileSystem",
        root: str,
        failures: tuple[type[Exception], ...],
        put_options: Mapping[str, Any],
        open_bulk: Callable[[], BulkClient | None],
    ) -> None:
        self.filesystem = filesystem
        self.root = root
        self._failures = failures
        self._put_options = put_options
        self._open_bulk = open_bulk

    @cached_property
    def bulk(self) -> BulkClient | None:
        """What moves files, chosen at the first one."""
        return self._open_bulk()

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    @contextlib.contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Any failure as a StoreError that says what was tried."""
        try:
            yield
        except self._failures as error:
            # a clock that is off comes as PermissionError without a word: the server's own words are in its cause
            reason = str(error) if error.args and error.args[-1] is not None else error.__cause__ or type(error).__name__
            raise StoreError(f"cannot {doing} the store at {self.root}: {reason}") from error

    def read(self, key: str) -> bytes | None:
        with self._named(f"read {key} from"):
            try:
                return bytes(self.filesystem.cat_file(self._path(key)))
            except FileNotFoundError:
                return None

    def get_file(self, key: str, path: Path) -> str | None:
        if self.bulk is not None:
            return self.bulk.get(key, path)
        [size] = self.sizes([key])
        if size is None:
            return None
        digest = hashlib.sha256()
        with self._named(f"download {key} from"), path.open("wb") as stream:
            for start in range(0, size, BLOCK_BYTES):  # its own download leaves a zero-filled file of the right size if killed
                block = self.filesystem.cat_file(self._path(key), start=start, end=min(start + BLOCK_BYTES, size))
                digest.update(block)
                stream.write(block)
        return digest.hexdigest()

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        return in_parallel(self._size, keys, REQUESTS) if self.bulk is None else self.bulk.sizes(keys)

    def _size(self, key: str) -> int | None:
        with self._named(f"look up {key} in"):
            try:
                return int(self.filesystem.info(self._path(key))["size"])
            except FileNotFoundError:
                return None

    def create(self, key: str, content: bytes) -> bool:
        try:
            with self._named(f"write {key} to"), contextlib.suppress(FileExistsError):
                self.filesystem.pipe_file(self._path(key), content, mode="create")
        except StoreError:
            if self.read(key) is None:
                raise
        # A lost answer looks like "exists" or like a failure although we won: what lies there decides.
        return self.read(key) == content

    def replace(self, key: str, content: bytes) -> None:
        with self._named(f"write {key} to"):
            self.filesystem.pipe_file(self._path(key), content)

    def put_file(self, key: str, path: Path) -> None:
        if self.bulk is not None:
            self.bulk.put(key, path)
        else:
            with self._named(f"upload {key} to"):
                self.filesystem.put_file(str(path), self._path(key), **self._put_options)
        [found], size = self.sizes([key]), path.stat().st_size
        if found != size:
            raise StoreError(
                f"{key} has {found} bytes after its upload to the store at {self.root}, expected {size}; run again"
            )

    def list(self, prefix: str) -> list[str]:
        base = self._path(prefix)
        with self._named(f"list {prefix} of"):
            found = self.filesystem.find(base)
        root = self.root.lstrip("/")
        return sorted(str(path).lstrip("/").removeprefix(f"{root}/") for path in found)

    def delete(self, key: str) -> None:
        with self._named(f"delete {key} from"), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self._path(key))

    def local_path(self, key: str) -> Path | None:
        return None
