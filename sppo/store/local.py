"""A store in a folder of this machine, or of a file system that it mounts."""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store.clock import Written
from sppo.store.keys import checked

BLOCK_BYTES = 8 << 20
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""There is no such object."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EEXIST, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}


class LocalBackend:
    """A folder on this machine. Objects appear by hard link or rename of a synced temporary file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        return str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    @contextlib.contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Any failure as a StoreError that says what was tried and what to do."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {doing} the store at {self.root}: {error.strerror or error}; {_next_move(error, doing)}"
            ) from error

    def read(self, key: str) -> bytes | None:
        with self._named(f"read {key} from"):
            try:
                return self._path(key).read_bytes()
            except ABSENT:
                return None

    def get_file(self, key: str, path: Path) -> str | None:
        digest = hashlib.sha256()
        with self._named(f"read {key} from"):
            try:
                source = self._path(key).open("rb")
            except ABSENT:
                return None
        with source, path.open("wb") as target:
            while block := self._block(key, source.read):
                digest.update(block)
                target.write(block)
        return digest.hexdigest()

    def _block(self, key: str, read: Callable[[int], bytes]) -> bytes:
        with self._named(f"read {key} from"):
            return read(BLOCK_BYTES)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        return [None if (found := self._stat(key)) is None else found.st_size for key in keys]

    def written(self, key: str) -> Written | None:
        found = self._stat(key)
        if found is None:
            return None
        with self._named(f"ask the time of {key} from"):
            # a file made now has the time of the machine that keeps the folder
            descriptor, name = tempfile.mkstemp(dir=self._path(key).parent, prefix=".writing-")
            os.close(descriptor)
            now = os.stat(name).st_mtime
            os.unlink(name)
        return Written(found.st_mtime, now - found.st_mtime)

    def _stat(self, key: str) -> os.stat_result | None:
        with self._named(f"look up {key} in"):
            try:
                found = self._path(key).stat()
            except ABSENT:
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    def create(self, key: str, content: bytes) -> bool:
        with self._named(f"write {key} to"):
            with self._synced(key, iter([content])) as temporary:
                try:
                    os.link(temporary, self._path(key))
                except FileExistsError:
                    if temporary.stat().st_nlink != 2:  # else ours: a file server's answer was lost and the request sent again
                        return False
            _sync(self._path(key).parent)
        if self.read(key) != content:
            raise CorruptArtifactError(
                f"{key} was created in the store at {self.root} and holds other bytes; see that the disk or the mount is well"
            )
        return True

    def replace(self, key: str, content: bytes) -> None:
        self._put(f"write {key} to", key, iter([content]))

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as stream:
            self._put(f"upload {key} to", key, iter(lambda: stream.read(BLOCK_BYTES), b""))

    def _put(self, doing: str, key: str, blocks: Iterator[bytes]) -> None:
        with self._named(doing), self._synced(key, blocks) as temporary:
            temporary.replace(self._path(key))
            _sync(self._path(key).parent)

    @contextlib.contextmanager
    def _synced(self, key: str, blocks: Iterator[bytes]) -> Iterator[Path]:
        """A file beside the object's place, its bytes on the disk."""
        folder = self._path(key).parent
        _make(folder)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                for block in blocks:
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def list(self, prefix: str) -> list[str]:
        base = self._path(prefix)
        with self._named(f"list {prefix or 'all'} of"):
            files = (path for path in base.rglob("*") if path.is_file() and not path.name.startswith(".writing-"))
            return sorted(str(path.relative_to(self.root)) for path in files)

    def delete(self, key: str) -> None:
        with self._named(f"delete {key} from"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._path(key).unlink()

    def local_path(self, key: str) -> Path | None:
        return self._path(key)


def _next_move(error: OSError, doing: str) -> str:
    if error.errno in FULL:
        return "make room there, then run again: what is committed is kept"
    if error.errno in REFUSED:
        return "choose a folder you may read" if doing.startswith("read") else "choose a folder you may write to"
    return "see that the disk or the mount is well, then run again: what is committed is kept"


def _make(folder: Path) -> None:
    """The folder, known to the disk: after a power cut a record must not be there without the files it names."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        _sync(made.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)
