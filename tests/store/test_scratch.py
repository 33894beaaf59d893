"""Copies of remote objects are bounded, the oldest go first, and never one that a living process uses."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sppo.errors import StoreError
from sppo.store.scratch import Scratch

DAY_S = 24 * 3600


def copy(scratch: Scratch, name: str, used_s_ago: float, size: int = 400) -> Path:
    path = scratch.root / "objects" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - used_s_ago, time.time() - 9000))
    return path


def names(scratch: Scratch) -> list[str]:
    return sorted(path.name for path in (scratch.root / "objects").iterdir())


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    monkeypatch.setenv("SPPO_SCRATCH_LIMIT_GB", "0.000001")  # 1000 bytes
    return Scratch(tmp_path)


def test_the_copy_used_longest_ago_goes_first(scratch: Scratch) -> None:
    for name, ago in (("older", 300), ("oldest", 500), ("newest", 10)):
        copy(scratch, name, ago)
    scratch.make_room(100)  # 1200 + 100 bytes under a limit of 1000: one copy of 400 has to go
    assert names(scratch) == ["newest", "older"]
    scratch.make_room(300)  # 800 + 300
    assert names(scratch) == ["newest"]


def test_taking_a_copy_into_use_makes_it_the_newest_and_leaves_its_modification_time(scratch: Scratch) -> None:
    first = copy(scratch, "first", 500)
    copy(scratch, "second", 300)
    modified = first.stat().st_mtime_ns
    Scratch(scratch.root).hold("objects/first")
    assert first.stat().st_mtime_ns == modified  # by which a process knows that it has hashed it
    assert first.stat().st_atime > time.time() - 60


def test_what_a_living_process_uses_stays_and_goes_when_it_has_died(scratch: Scratch) -> None:
    copy(scratch, "used", 500)
    copy(scratch, "idle", 300)
    code = (
        "import sys, pathlib; from sppo.store.scratch import Scratch; scratch = Scratch(pathlib.Path(sys.argv[1]));"
        "scratch.hold('objects/used'); print('holds', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(scratch.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    scratch.make_room(900)
    assert names(scratch) == ["used"]
    process.kill()
    process.communicate()
    scratch.make_room(900)
    assert names(scratch) == []


def test_what_this_process_uses_stays_even_over_the_limit(scratch: Scratch, caplog: pytest.LogCaptureFixture) -> None:
    copy(scratch, "mine", 500)
    scratch.hold("objects/mine")
    scratch.make_room(900)
    assert names(scratch) == ["mine"]
    assert "over its limit, all of it in use" in caplog.text


def test_what_processes_left_a_day_ago_is_swept_when_the_next_one_starts(tmp_path: Path) -> None:
    before = Scratch(tmp_path)
    [held] = before.hold("work/of-a-living-process")
    held.mkdir()
    for name in ("work/train-old", "work/train-new", "logs/old.log", "objects/.reading-old"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.startswith("work") else path.write_text("")
        if "old" in name:
            os.utime(path, (0, time.time() - DAY_S - 60))
    os.utime(held, (0, time.time() - DAY_S - 60))
    Scratch(tmp_path).hold("work/mine")
    left = [str(path.relative_to(tmp_path)) for folder in ("work", "logs", "objects") for path in (tmp_path / folder).iterdir()]
    assert sorted(left) == ["work/of-a-living-process", "work/train-new"]


def test_a_child_that_is_forked_under_the_lock_does_not_keep_it(scratch: Scratch) -> None:
    with scratch._locked(fcntl.LOCK_EX):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with (scratch.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, were it not free
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("text", ["0", "-5", "much", "nan"])
def test_a_limit_that_is_no_size_is_refused(scratch: Scratch, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_SCRATCH_LIMIT_GB", text)
    with pytest.raises(StoreError, match=f"SPPO_SCRATCH_LIMIT_GB is '{text}'; expected gigabytes"):
        scratch.make_room(1)
