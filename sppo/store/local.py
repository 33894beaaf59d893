"""A store in a folder of this machine, or of a file system that it mounts."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppo.errors import StoreError

BLOCK_BYTES = 8 << 20


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

    def get_file(self, key: str, path: Path) -> str | None:
        digest = hashlib.sha256()
        try:
            with self._path(key).open("rb") as source, path.open("wb") as target:
                while block := source.read(BLOCK_BYTES):
                    digest.update(block)
                    target.write(block)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return digest.hexdigest()

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        return [self._size(key) for key in keys]

    def _size(self, key: str) -> int | None:
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
