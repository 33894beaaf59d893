"""A disk of this machine that takes no more, said in words: where, and what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sppo.errors import StoreError

TAKES_NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def no_room(error: OSError, scratch: Path | None = None) -> StoreError | None:
    """An error in the place of one of a disk that is full or read-only; None for any other. scratch: where, if not said."""
    if error.errno not in TAKES_NO_MORE:
        return None
    named = Path(error.filename) if isinstance(error.filename, str) else None
    inside = scratch is not None and (named is None or named.is_relative_to(scratch))
    where = f"scratch at {scratch}" if inside else str(named or "this machine's disk")
    words = error.strerror if error.strerror and "\n" not in error.strerror else "No space left on device"
    return _refused(where, words)


def full_disk(path: Path) -> StoreError:
    """Of a file that a full disk did not take."""
    return _refused(str(path), os.strerror(errno.ENOSPC))


def _refused(where: str, words: str) -> StoreError:
    return StoreError(
        f"cannot write to {where}: {words}; make room there, or name another folder in SPPO_SCRATCH, then run again: what is "
        "committed is kept"
    )


@contextlib.contextmanager
def naming_full_disks(scratch: Path) -> Iterator[None]:
    """Any write that a full or read-only disk refuses as a StoreError."""
    try:
        yield
    except OSError as error:
        told = no_room(error, scratch)
        if told is None:
            raise
        raise told from error
