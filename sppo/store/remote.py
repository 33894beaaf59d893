"""A store behind fsspec, and where its traps end. Memory is one; a bucket is another (sppo.store.bucket)."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store.bulk import BulkClient
from sppo.store.clock import Written
from sppo.store.keys import checked
from sppo.store.parallel import in_parallel
from sppo.store.waiting import unreachable

BLOCK_BYTES = 32 << 20
REQUESTS = 32
"""Small requests under way at a time."""
CREATIONS = 3
"""Of one record, where the server says that another is at it and then there is none."""

CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
"""Another writer's record is there, or on its way."""


def memory_backend(root: str) -> "RemoteBackend":
    """Objects of this process, for tests."""
    return RemoteBackend(fsspec.filesystem("memory"), root)


class RemoteBackend:
    """An fsspec file system; as it stands, one in memory."""

    failures: tuple[type[Exception], ...] = (OSError,)
    read_options: ClassVar[Mapping[str, Any]] = {}
    put_options: ClassVar[Mapping[str, Any]] = {}
    creating: "contextlib.AbstractContextManager[Any]" = threading.Lock()
    """Memory looks and then writes; of a server this is asked, and tried (sppo.store.preflight)."""
    bulk: BulkClient | None = None
    """What moves files, where there is one."""

    def __init__(self, filesystem: "fsspec.AbstractFileSystem", root: str) -> None:
        self.filesystem = filesystem
        self.root = root

    @property
    def name(self) -> str:
        return self.root

    def _path(self, key: str) -> str:
        return f"{self.root}/{checked(key)}"

    def _call(self, doing: str, method: str, *values: Any, progress: Callable[[], int] | None = None, **options: Any) -> Any:
        """What a method of the file system answers. Raises FileNotFoundError and FileExistsError as they are."""
        return getattr(self.filesystem, method)(*values, **options)

    @contextlib.contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Any failure as a StoreError that says what was tried."""
        try:
            yield
        except self.failures as error:
            # a clock that is off comes as PermissionError without a word: the server's own words are in its cause
            reason = str(error) if error.args and error.args[-1] is not None else error.__cause__ or type(error).__name__
            raise unreachable(doing, self.name, str(reason)) from error

    def read(self, key: str) -> bytes | None:
        doing = f"read {key} from"
        with self._named(doing):
            try:
                return bytes(self._call(doing, "cat_file", self._path(key), **self.read_options))
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def _check_bucket(self, error: FileNotFoundError) -> None:
        """Raises the error again if it is not the object alone that is missing."""
        if code_of(error) == "NoSuchBucket":
            raise OSError("there is no such bucket") from error

    def get_file(self, key: str, path: Path) -> str | None:
        if self.bulk is not None:
            return self.bulk.get(checked(key), path)
        [size] = self.sizes([key])
        if size is None:
            return None
        digest = hashlib.sha256()
        with path.open("wb") as stream:
            for start in range(0, size, BLOCK_BYTES):  # its own download leaves a zero-filled file of the right size if killed
                block = self._range(key, start, min(start + BLOCK_BYTES, size))
                digest.update(block)
                stream.write(block)
        return digest.hexdigest()

    def _range(self, key: str, start: int, end: int) -> bytes:
        doing = f"download {key} from"
        with self._named(doing):
            return bytes(self._call(doing, "cat_file", self._path(key), start=start, end=end))

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        return in_parallel(self._size, keys, REQUESTS) if self.bulk is None else self.bulk.sizes([checked(key) for key in keys])

    def _size(self, key: str) -> int | None:
        doing = f"look up {key} in"
        with self._named(doing):
            try:
                found = self._call(doing, "info", self._path(key))
            except FileNotFoundError:
                return None
        return int(found["size"]) if found["type"] == "file" else None

    def written(self, key: str) -> Written | None:
        try:
            at = self.filesystem.modified(self._path(key)).timestamp()
        except FileNotFoundError:
            return None
        return Written(at, datetime.now(UTC).timestamp() - at)

    def create(self, key: str, content: bytes) -> bool:
        for _ in range(CREATIONS):
            said = self._try_to_create(key, content)
            found = self.read(key)
            if found is not None or said:
                break
        if said and found != content:
            found = self.read(key)
        if said and found != content:
            seen = "nothing" if found is None else "other bytes"
            raise CorruptArtifactError(
                f"the store at {self.name} says that it created {key}, and holds {seen} there; "
                "see that it keeps what it takes and creates records once (sppo checks that when a run starts), then run again"
            )
        return found == content  # whoever was said to have won: a lost answer looks like a record that exists

    def _try_to_create(self, key: str, content: bytes) -> bool:
        """Whether the server says that the record is ours. Raises StoreError for a failure that left nothing there."""
        doing = f"write {key} to"
        try:
            with self._named(doing), self.creating:
                self._call(doing, "pipe_file", self._path(key), content, mode="create")
        except StoreError as error:
            cause = error.__cause__
            if cause is None:  # nothing moved: asking what came of it would take as long again
                raise
            if not isinstance(cause, FileExistsError) and code_of(cause) not in CONFLICTS and not self._holds(key):
                raise
            return False
        return True

    def _holds(self, key: str) -> bool:
        try:
            return self.read(key) is not None
        except StoreError:  # of the failures in a row the first is told
            return False

    def replace(self, key: str, content: bytes) -> None:
        doing = f"write {key} to"
        with self._named(doing):
            self._call(doing, "pipe_file", self._path(key), content)

    def put_file(self, key: str, path: Path) -> None:
        if self.bulk is not None:
            self.bulk.put(checked(key), path)
            return
        self._put_file(key, path)
        [found], size = self.sizes([key]), path.stat().st_size
        if found != size:
            raise StoreError(
                f"{key} has {found} bytes after its upload to the store at {self.name}, expected {size}; run again"
            )

    def _put_file(self, key: str, path: Path) -> None:
        from fsspec.callbacks import Callback

        moved = Callback()
        doing = f"upload {key} to"
        with self._named(doing):
            options = {"callback": moved, "progress": lambda: moved.value, **self.put_options}
            self._call(doing, "put_file", str(path), self._path(key), **options)

    def _keys(self, prefix: str) -> list[str]:
        return [str(path) for path in self.filesystem.find(self._path(prefix).rstrip("/"))]

    def list(self, prefix: str) -> list[str]:
        with self._named(f"list {prefix or 'all'} of"):
            found = self._keys(prefix)
        root = self.root.lstrip("/")
        return sorted(path.lstrip("/").removeprefix(f"{root}/") for path in found)

    def delete(self, key: str) -> None:
        doing = f"delete {key} from"
        with self._named(doing), contextlib.suppress(FileNotFoundError):
            self._call(doing, "rm_file", self._path(key))

    def local_path(self, key: str) -> Path | None:
        return None


def code_of(error: BaseException | None) -> str:
    """The server's own word for an error that s3fs made one of Python's, such as `NoSuchBucket`; empty without one."""
    response = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
