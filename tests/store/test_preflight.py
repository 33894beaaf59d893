"""A store that a run cannot rest on is refused when the run starts, by name of what is wrong with it."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sppo.errors import StoreError
from sppo.store import Store
from sppo.store.local import LocalBackend
from sppo.store.preflight import preflight


def test_a_good_store_passes_and_keeps_nothing(any_store: Store) -> None:
    any_store.backend.create("runs/a.json", b"mine")
    preflight(any_store.backend)
    assert any_store.backend.list("") == ["runs/a.json"]


FAULTS = {
    "ignores": r"ignores If-None-Match: checks/\w+-record was created a second time .* use a server with atomic create-once",
    "races": r"races If-None-Match: of 4 writers who created checks/\w+-race-0 at once, 4 were told that they did",
    "refuses": r"takes writes and refuses to create a record once .*NotImplemented, it says",
    "delayed": r"does not read its own writes: checks/\w+-plain was written, and nothing is there; ask the server itself",
    "stale": r"does not read its own writes: checks/\w+-plain was written, and what was there before it comes back",
    "text": r"changes bytes: 1037 bytes went to checks/\w+-plain and 1036 came back; look for a proxy",
    "flips": r"changes bytes: byte 1036 of checks/\w+-plain was 10 and came back as 11",
    "sizeless": r"cannot look up checks/\w+-plain in the store .*: it gives no size of the object \(Content-Length\)",
    "zero sizes": r"has no sizes to go by: of an object with 1037 bytes and one that is not there it says 0 and None",
    "keeps": r"keeps what is deleted: checks/\w+-plain was deleted and is still there",
    "read-only": r"cannot write checks/\w+-plain to the store .*AccessDenied, it says; .*takes these credentials",
}


@pytest.mark.parametrize("open_faulty", ["awscrt"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_with_a_fault_is_refused_by_name(fault: str, open_faulty: Callable[[], Store], faulty: Any) -> None:
    faulty.faults = {fault}
    with pytest.raises(StoreError, match=FAULTS[fault]) as caught:
        open_faulty().check_writable()
    assert f"s3://bucket/prefix on http://127.0.0.1:{faulty.server_port}" in str(caught.value)
    if fault != "keeps":
        assert not faulty.objects


@pytest.mark.parametrize("open_faulty", ["s3fs"], indirect=True)
@pytest.mark.parametrize("fault", [None, "sizeless", "zero sizes"])
def test_so_it_is_where_another_client_moves_the_files(
    fault: str | None, open_faulty: Callable[[], Store], faulty: Any
) -> None:
    if fault is None:
        open_faulty().check_writable()
        assert not faulty.objects
        return
    faulty.faults = {fault}
    with pytest.raises(StoreError, match=FAULTS[fault]):
        open_faulty().check_writable()


class Overwriting(LocalBackend):
    """A file system on which the last writer wins."""

    def create(self, key: str, content: bytes) -> bool:
        self.replace(key, content)
        return self.read(key) == content


class Looking(LocalBackend):
    """Looks first and then writes."""

    def create(self, key: str, content: bytes) -> bool:
        if self.read(key) is not None:
            return False
        time.sleep(0.02)
        self.replace(key, content)
        return True


class Never(LocalBackend):
    def create(self, key: str, content: bytes) -> bool:
        return False


class Lagging(LocalBackend):
    def read(self, key: str) -> bytes | None:
        return None


class Sizeless(LocalBackend):
    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        return [0 for _ in keys]


class Shortening(LocalBackend):
    """Loses the end of files, and not of records."""

    def put_file(self, key: str, path: Path) -> None:
        self.replace(key, path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Overwriting, "ignores If-None-Match"),
        (Looking, "races If-None-Match"),
        (Never, r"says of checks/\w+-record, where nothing is, that it exists"),
        (Lagging, "does not read its own writes"),
        (Sizeless, "has no sizes to go by: of an object with 1037 bytes and one that is not there it says 0 and 0"),
        (Shortening, r"changes bytes: 1037 bytes went to checks/\w+-file and 1036 came back"),
    ],
)
def test_a_folder_with_a_fault_is_refused_by_name(kind: type[LocalBackend], message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"the store at {tmp_path} {message}.*, then run again"):
        preflight(kind(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_two_runs_may_start_at_once(record_store: Store) -> None:
    gate = threading.Barrier(2)
    failures: list[BaseException] = []

    def start() -> None:
        gate.wait()
        try:
            record_store.check_writable()
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert record_store.backend.list("") == []
