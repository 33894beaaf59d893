"""Two runs do not do the same work at a time, and nobody waits for one who is gone. The manifest decides all the same."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sppo.errors import StoppedError, StoreError
from sppo.launch.processes import halt, start_afresh
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace, leases
from sppo.store.leases import Holder, Lease, holder
from sppo.store.seal import sealed

IDENTITY = Identity("greet", 1, {"tone": "kind"}, {})
FINGERPRINT = IDENTITY.fingerprint
KEY = f"greet/{FINGERPRINT}/work/lease-1"
FAR = Holder(host="elsewhere", machine="another boot", process=7, started="1", thread=1, word="w")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.05)


def greeting(text: str, calls: list[str], meanwhile: Callable[[], object] = lambda: None) -> Step:
    def run(workspace: Workspace) -> Outcome:
        calls.append(text)
        meanwhile()
        workspace.add_text(text, "greeting.txt")
        return Outcome("1 greeting")

    return Step(IDENTITY, run)


def work_of(store: Store) -> list[str]:
    return store.backend.list(f"greet/{FINGERPRINT}/work")


def test_the_second_of_two_runs_waits_for_the_first_and_adopts_what_it_made(
    record_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls: list[str] = []
    at_it, go_on = threading.Event(), threading.Event()

    def first() -> Artifact:
        return record_store.build(greeting("first", calls, lambda: (at_it.set(), go_on.wait(20))))

    def second() -> Artifact:
        at_it.wait(20)
        return record_store.build(greeting("second", calls))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(first), pool.submit(second)
        at_it.wait(20)
        assert holder(record_store.backend, "greet", FINGERPRINT) == f"process {os.getpid()} on {os.uname().nodename}"
        while "waiting for it" not in caplog.text:
            time.sleep(0.02)
        go_on.set()
        assert one.result().text("greeting.txt") == other.result().text("greeting.txt") == "first"
    assert calls == ["first"]
    told = [record.getMessage() for record in caplog.records if "waiting for it" in record.getMessage()]
    assert told == [f"greet: process {os.getpid()} on {os.uname().nodename} makes greet/{FINGERPRINT[:8]}; waiting for it"]
    assert work_of(record_store) == []
    assert holder(record_store.backend, "greet", FINGERPRINT) is None


def test_a_run_that_fails_lets_the_next_one_in_at_once(record_store: Store) -> None:
    def fail() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        record_store.build(greeting("first", [], fail))
    assert work_of(record_store) == []
    started = time.monotonic()
    assert record_store.build(greeting("second", [])).text("greeting.txt") == "second"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("record_store", ["file", "ceph"], indirect=True)
def test_of_those_who_wait_for_one_that_is_gone_one_takes_over(
    record_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "TERM_S", 4.0)
    workspace = record_store.workspace("greet", FINGERPRINT)
    (workspace.folder / "x").write_text("of the one that is gone")
    part = workspace.commit_part("chunk-0", [workspace.folder / "x"])
    record_store.backend.create(KEY, sealed(FAR, KEY))
    calls: list[str] = []

    def build(number: int) -> Artifact:
        return record_store.build(greeting(f"run {number}", calls, lambda: time.sleep(0.2)))

    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(build, range(3)))
    assert len(calls) == 1
    assert {artifact.text("greeting.txt") for artifact in made} == set(calls)
    assert time.monotonic() - started > 2.9  # an object's age is in whole seconds on S3
    assert record_store.workspace("greet", FINGERPRINT).part("chunk-0") == part
    assert f"greet/{FINGERPRINT[:8]}: process 7 on elsewhere is gone, its work is taken over" in caplog.text
    assert work_of(record_store) == []


@pytest.mark.parametrize("record_store", ["file", "ceph"], indirect=True)
def test_one_who_renews_is_waited_for_beyond_the_term_and_by_whatever_clock(
    record_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TERM_S", 4.0)
    lease = Lease(record_store.backend, "greet", FINGERPRINT)
    assert lease.take() == ""
    true_time = time.time
    refusals = []
    with ThreadPoolExecutor(1) as pool:  # another thread, or it would not have to wait
        waiting = pool.submit(Lease, record_store.backend, "greet", FINGERPRINT).result()
        for offset in (0.0, 3600.0, -3600.0) * 4:
            monkeypatch.setattr(time, "time", lambda offset=offset: true_time() + offset)
            refusals.append(pool.submit(waiting.take).result())
            time.sleep(0.5)
        monkeypatch.setattr(time, "time", true_time)
        assert set(refusals) == {f"process {os.getpid()} on {os.uname().nodename}"}
        lease.release()
        assert pool.submit(waiting.take).result() == ""
        waiting.release()
    assert work_of(record_store) == []


def test_a_run_that_was_killed_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sppo.store import Store\nfrom sppo.store.leases import Lease\n"
        "lease = Lease(Store(sys.argv[1], Path(sys.argv[2])).backend, 'greet', sys.argv[3])\n"
        "print(repr(lease.take()), flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, store.url, str(store.scratch), FINGERPRINT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "''\n"
        assert holder(store.backend, "greet", FINGERPRINT) is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert holder(store.backend, "greet", FINGERPRINT) is None
    started = time.monotonic()
    assert store.build(greeting("next", [])).text("greeting.txt") == "next"
    assert time.monotonic() - started < 5  # and not its term of 60 s


def test_a_store_whose_clock_tells_nothing_is_watched(record_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TERM_S", 0.5)
    monkeypatch.setattr(type(record_store.backend), "written", lambda backend, key: leases.Written(0.0, 0.0))
    record_store.backend.create(KEY, sealed(FAR, KEY))
    started = time.monotonic()
    assert record_store.build(greeting("next", [])).text("greeting.txt") == "next"
    assert time.monotonic() - started > 0.5


def test_a_damaged_lease_ends_with_its_term(record_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record_store.backend.create(KEY, b"{")
    lease = Lease(record_store.backend, "greet", FINGERPRINT)
    assert lease.take() == "another run"
    assert holder(record_store.backend, "greet", FINGERPRINT) == "another run"
    monkeypatch.setattr(leases, "TERM_S", -1.0)
    assert holder(record_store.backend, "greet", FINGERPRINT) is None
    assert lease.take() == ""
    lease.release()
    assert work_of(record_store) == []


def test_one_that_was_followed_does_not_release_what_is_anothers(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "TERM_S", 0.2)
    lease = Lease(store.backend, "greet", FINGERPRINT)
    assert lease.take() == ""
    second = KEY.replace("lease-1", "lease-2")
    store.backend.create(second, sealed(FAR, second))
    while "another run took over" not in caplog.text:
        time.sleep(0.02)
    lease.release()
    assert work_of(store) == [KEY, second]


def test_a_store_that_fails_meanwhile_does_not_stop_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "TERM_S", 0.1)

    def fail(key: str, content: bytes) -> None:
        raise StoreError("away")

    monkeypatch.setattr(store.backend, "replace", fail)
    assert store.build(greeting("made", [], lambda: time.sleep(0.3))).text("greeting.txt") == "made"
    assert f"greet/{FINGERPRINT[:8]}: its lease could not be renewed: away" in caplog.text


def test_machines_of_a_pool_count_while_their_work_records_are_fresh(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"greet/{FINGERPRINT}/work/1-of-2.json"
    store.backend.replace(key, b"{}")
    assert holder(store.backend, "greet", FINGERPRINT) == f"whoever wrote {key}"
    os.utime(store.backend.local_path(key) or "", (0, time.time() - 61))
    assert holder(store.backend, "greet", FINGERPRINT) is None


@pytest.fixture
def stopped() -> Iterator[None]:
    halt("flow run 7 is cancelled")
    yield
    start_afresh()


def test_a_run_that_is_cancelled_stops_waiting(store: Store, stopped: None) -> None:
    store.backend.create(KEY, sealed(FAR, KEY))
    with pytest.raises(StoppedError, match="flow run 7 is cancelled"):
        store.build(greeting("never", []))
    assert work_of(store) == [KEY]
