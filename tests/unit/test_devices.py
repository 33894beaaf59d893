"""Devices are lent to one group at a time, also to groups of other processes, and come back however a holder ends."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sppo.errors import LaunchError, StoppedError
from sppo.launch.devices import device_environment, lent, machine_devices
from sppo.launch.processes import halt, start_afresh

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom sppo.launch.devices import lent\n"
    "with lent(1, 'cpu', Path(sys.argv[1]), 'another run') as names:\n    print(*names, flush=True)\n    time.sleep(60)"
)


@pytest.fixture(autouse=True)
def two_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DEVICES", "0,1")


def test_devices_are_those_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_devices("cuda") == ["0", "1"]
    monkeypatch.delenv("SPPO_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8f6")
    assert machine_devices("cuda") == ["4", "GPU-8f6"]
    assert machine_devices("cpu") == []
    assert device_environment("cuda", ("4", "GPU-8f6")) == {"CUDA_VISIBLE_DEVICES": "4,GPU-8f6"}
    assert device_environment("cpu", ()) == {}


def test_on_cpu_nothing_is_lent_unless_slots_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPPO_DEVICES")
    with lent(8, "cpu", tmp_path, "a run") as names:
        assert names == ()
    assert list(tmp_path.iterdir()) == []


def test_two_groups_never_hold_one_device(tmp_path: Path) -> None:
    with lent(1, "cuda", tmp_path, "one") as first, lent(1, "cuda", tmp_path, "two") as second:
        assert {*first, *second} == {"0", "1"}


def test_a_run_that_is_cancelled_waits_for_no_device(tmp_path: Path) -> None:
    with lent(2, "cpu", tmp_path, "another run"):
        halt("flow run 7 is cancelled")
        try:
            with pytest.raises(StoppedError, match="rank: flow run 7 is cancelled"), lent(1, "cpu", tmp_path, "rank"):
                pass
        finally:
            start_afresh()


def test_more_devices_than_the_machine_has_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="3 devices are needed and this machine shows 2: 0,1"), lent(3, "cuda", tmp_path, "x"):
        pass


def test_a_group_that_needs_all_devices_is_not_passed_by(tmp_path: Path) -> None:
    order: list[str] = []

    def hold(count: int, name: str) -> None:
        with lent(count, "cuda", tmp_path, name):
            order.append(name)
            time.sleep(0.1)

    with lent(1, "cuda", tmp_path, "first"):
        everything = threading.Thread(target=hold, args=(2, "all"))
        everything.start()
        time.sleep(0.5)
        late = threading.Thread(target=hold, args=(1, "late"))  # a device is free, but "all" came before
        late.start()
        time.sleep(0.5)
        assert order == []
    everything.join()
    late.join()
    assert order == ["all", "late"]


def test_a_device_comes_back_when_its_holder_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        with lent(1, "cpu", tmp_path, "ours") as names:
            assert names == ("1",)
        threading.Timer(0.5, other.kill).start()
        with lent(2, "cpu", tmp_path, "ours") as names:
            assert names == ("0", "1")
