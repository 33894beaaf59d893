"""The local folder for work in progress and for copies of remote objects, shared by this machine's processes and bounded.

A process names what it uses in a lease, a file that it keeps locked while it lives: what a living lease names stays, the rest
may go. The kernel lets go of the lock however the process ends.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sppo.errors import StoreError

log = logging.getLogger(__name__)

KEPT_S = 24 * 3600.0
"""How long the work folders and logs of processes that ended stay, for people to look at."""
FREE_SHARE = 0.05
"""Of the disk, left to others."""


@cache
def open_scratch(root: Path) -> "Scratch":
    """The process's one view of a scratch folder."""
    return Scratch(root)


class Scratch:
    """`objects/` (copies, named by sha256), `work/` and `logs/` of a scratch folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: set[str] = set()
        self._lease: int | None = None
        self._thread = threading.Lock()

    def hold(self, *names: str) -> list[Path]:
        """The paths of names such as `objects/<sha256>`, safe from removal until this process ends."""
        paths = [self.root / name for name in names]
        with self._thread:
            new = [(name, path) for name, path in zip(names, paths, strict=True) if name not in self._held]
            if new:
                for parent in {path.parent for _, path in new}:
                    parent.mkdir(parents=True, exist_ok=True)
                first = self._lease is None
                with self._locked(fcntl.LOCK_SH):
                    os.write(self._open_lease(), "".join(f"{name}\n" for name, _ in new).encode())
                    for _, path in new:
                        if path.is_file():  # the access time orders evictions; the other says whether it was verified
                            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                self._held.update(name for name, _ in new)
                if first:
                    self._sweep()
        return paths

    def make_room(self, size: int) -> None:
        """Remove the copies used longest ago until as many bytes fit: below $SPPO_SCRATCH_LIMIT_GB, with disk to spare."""
        limit = read_limit()
        with self._thread, self._locked(fcntl.LOCK_EX):
            in_use = self._in_use()
            found = _copies(self.root / "objects")
            used, disk = sum(one[1] for one in found), shutil.disk_usage(self.root)
            excess = max(used + size - limit, size + FREE_SHARE * disk.total - disk.free)
            for _, freed, path in sorted(found):
                if excess > 0 and f"objects/{path.name}" not in in_use:
                    path.unlink(missing_ok=True)
                    excess -= freed
        if excess > 0:
            log.warning("scratch %s: %.1f GB over its limit, all of it in use", self.root, excess / 1e9)

    def _sweep(self) -> None:
        """Remove what processes that ended more than a day ago left behind."""
        with self._locked(fcntl.LOCK_EX):
            in_use, before = self._in_use(), time.time() - KEPT_S
            left = [*self.root.glob("work/*"), *self.root.glob("logs/*"), *self.root.glob("objects/.reading-*")]
            for path in left:
                if f"{path.parent.name}/{path.name}" in in_use or path.lstat().st_mtime > before:
                    continue
                log.info("scratch: %s is of a process that ended, removed", path)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)  # a child that is still writing: the next sweep
                else:
                    path.unlink(missing_ok=True)

    def _in_use(self) -> set[str]:
        """What living processes hold; the leases of others are removed. Under the exclusive lock."""
        names: set[str] = set()
        for path in self.root.glob("leases/*"):
            with path.open() as lease:
                try:
                    fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(lease.read().split("\n"))
                else:
                    path.unlink()
        return names

    def _open_lease(self) -> int:
        if self._lease is None:
            folder = self.root / "leases"
            folder.mkdir(exist_ok=True)
            self._lease, _ = tempfile.mkstemp(dir=folder)
            fcntl.flock(self._lease, fcntl.LOCK_EX)
        return self._lease

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Leases are written under the shared lock, and things removed under the exclusive one."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, kind)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: a child that was forked meanwhile has it open too


def _copies(folder: Path) -> list[tuple[int, int, Path]]:
    """When each complete copy was last taken into use, its bytes, its path."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process found its bytes wrong and removed it
            if not path.name.startswith("."):
                found.append((path.stat().st_atime_ns, path.stat().st_size, path))
    return found


def read_limit() -> float:
    """Bytes from $SPPO_SCRATCH_LIMIT_GB, 200 GB if it is not set. Raises StoreError for anything but a positive number."""
    text = os.environ.get("SPPO_SCRATCH_LIMIT_GB") or "200"
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text) * 1e9
    raise StoreError(f"SPPO_SCRATCH_LIMIT_GB is {text!r}; expected gigabytes for copies of remote objects, such as 200")
