"""What commits rest on, tried out when a run starts: a few small objects are written to the store and removed again.

Not every server that speaks S3 keeps to it. Some ignore `If-None-Match: *`, some look first and write then, some sit behind a
cache or a proxy that changes what passes. Each would lose or mix work hours later and in silence.
"""

import logging
import re
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store.backend import Backend
from sppo.store.parallel import in_parallel

log = logging.getLogger(__name__)

FOLDER = "checks"
OBJECT = re.compile(rf"{FOLDER}/[0-9a-f]{{16}}-(plain|file|record|race-\d)")
"""Keys of what a run that was killed at it leaves."""
WRITERS = 4
"""Of one record at a time."""
ROUNDS = 5
START_S = 60.0
"""For all of them to be there: a machine that lends no more threads would be waited for without end."""
STRAIGHT = "ask the server itself, without a cache or a lagging replica between"
OTHER = "use a server with atomic create-once writes, such as AWS S3 or Ceph"
SAMPLE = bytes(range(256)) * 4 + b"\r\n\x00 caf\xc3\xa9 \xff\xfe\n"
"""Every byte, and what text conversions change."""


def preflight(backend: Backend) -> None:
    """Raises StoreError, naming the fault and the next move, for a store that a run cannot rest on; leaves nothing behind."""
    start = f"{FOLDER}/{secrets.token_hex(8)}"
    plain, file, record = (f"{start}-{name}" for name in ("plain", "file", "record"))
    races = [f"{start}-race-{number}" for number in range(ROUNDS)]
    keys = [plain, file, record, *races]
    _check_absent(backend, plain)  # of a store that does not even answer nothing is to be removed
    try:
        _check_writes(backend, plain)
        _check_sizes(backend, plain, file)
        _check_file(backend, file)
        _check_creation(backend, record)
        for key in races:
            _check_race(backend, key)
    except StoreError:
        _clean(backend, keys)
        raise
    in_parallel(backend.delete, keys)
    left = [key for key, size in zip(keys, backend.sizes(keys), strict=True) if size is not None]
    if left:
        raise _fault(backend, f"keeps what is deleted: {left[0]} was deleted and is still there", "turn off what holds objects")


def _fault(backend: Backend, fault: str, move: str) -> StoreError:
    return StoreError(f"the store at {backend.name} {fault}; {move}, then run again")


def _check_absent(backend: Backend, key: str) -> None:
    if backend.read(key) is not None:
        raise _fault(backend, f"has an object at {key}, where nothing was ever written", STRAIGHT)


def _check_writes(backend: Backend, key: str) -> None:
    """A new object and one that replaces it are each what is read next."""
    for content in (SAMPLE, SAMPLE[::-1]):
        backend.replace(key, content)
        found = backend.read(key)
        if found == content:
            continue
        if found in (None, SAMPLE):
            stale = "nothing is there" if found is None else "what was there before it comes back"
            raise _fault(backend, f"does not read its own writes: {key} was written, and {stale}", STRAIGHT)
        raise _changes(backend, key, content, found or b"")


def _changes(backend: Backend, key: str, content: bytes, found: bytes) -> StoreError:
    if len(found) != len(content):
        what = f"{len(content)} bytes went to {key} and {len(found)} came back"
    else:
        at = next(place for place, (one, other) in enumerate(zip(content, found, strict=True)) if one != other)
        what = f"byte {at} of {key} was {content[at]} and came back as {found[at]}"
    between = "look for a proxy or gateway that compresses, converts or damages what passes, or use another server"
    return _fault(backend, f"changes bytes: {what}", between)


def _check_sizes(backend: Backend, key: str, absent: str) -> None:
    expected = [len(SAMPLE), None]
    found = backend.sizes([key, absent])
    if found != expected:
        raise _fault(
            backend,
            f"has no sizes to go by: of an object with {expected[0]} bytes and one that is not there it says {found[0]} and "
            f"{found[1]} (HEAD, Content-Length)",
            "use a server that tells them, for a shortened file is found by its size",
        )


def _check_file(backend: Backend, key: str) -> None:
    """Files take another way than records."""
    with tempfile.TemporaryDirectory(prefix="sppo-check-") as folder:
        there, back = Path(folder) / "there", Path(folder) / "back"
        there.write_bytes(SAMPLE)
        back.touch()
        backend.put_file(key, there)
        digest = backend.get_file(key, back)
        if digest != sha256(SAMPLE).hexdigest():
            raise _changes(backend, key, SAMPLE, back.read_bytes())


def _check_creation(backend: Backend, key: str) -> None:
    try:
        first = backend.create(key, b"first")
    except CorruptArtifactError:
        raise
    except StoreError as error:
        raise _fault(backend, f"takes writes and refuses to create a record once (If-None-Match: *): {error}", OTHER) from error
    if not first:
        raise _fault(backend, f"says of {key}, where nothing is, that it exists (If-None-Match: *)", OTHER)
    if backend.create(key, b"second") or backend.read(key) != b"first":
        raise _fault(
            backend,
            f"ignores If-None-Match: {key} was created a second time over the first, so two runs could overwrite each other",
            OTHER,
        )


def _check_race(backend: Backend, key: str) -> None:
    """Of writers of one record who start together, one wins and its record stays."""
    gate = threading.Barrier(WRITERS, timeout=START_S)
    contents = [f"writer {number}".encode() for number in range(WRITERS)]

    def create(content: bytes) -> bool:
        gate.wait()
        try:
            return backend.create(key, content)
        except CorruptArtifactError:  # told that it won, and overwritten by another that was told the same
            return True

    won = _together(create, contents)
    winners = [content for content, has in zip(contents, won, strict=True) if has]
    if len(winners) == 1 and backend.read(key) == winners[0]:
        return
    told = f"{len(winners) or 'none'} were told that they did" if len(winners) != 1 else "the record is not that of the winner"
    raise _fault(
        backend,
        f"races If-None-Match: of {WRITERS} writers who created {key} at once, {told}, so two runs could overwrite each other",
        OTHER,
    )


def _together(work: Callable[[bytes], bool], contents: Sequence[bytes]) -> list[bool]:
    with ThreadPoolExecutor(len(contents), "preflight") as pool:
        return list(pool.map(work, contents))


def _clean(backend: Backend, keys: Sequence[str]) -> None:
    try:
        in_parallel(backend.delete, keys)
    except StoreError as problem:  # the fault itself is what is told
        log.warning("what was written below %s/ could not be removed: %s", FOLDER, problem)
