"""What `sppo serve` decides before it starts anything, and which processes it takes for its own."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import background
from flows.environment import port_is_free, read_environment, serving_settings, write_environment
from flows.serving import device_shares
from sppo.errors import HardwareError, LaunchError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "serve"
    made.mkdir()
    return made


def settings(folder: Path, running: tuple[str, ...] = (), port: int | None = None, store: str | None = None) -> dict[str, str]:
    made = serving_settings(folder, folder / "store", running, port, store)
    write_environment(folder / "environment", made)
    return made


def test_one_gpu_worker_has_all_devices_and_two_have_half_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DEVICES", "0,1,2,3")
    assert device_shares(1) == [{}]
    assert device_shares(2) == [{"SPPO_DEVICES": "0,1"}, {"SPPO_DEVICES": "2,3"}]


@pytest.mark.parametrize("workers", [3, 8, 0])
def test_devices_that_cannot_be_shared_out_evenly_are_refused(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DEVICES", "0,1,2,3")
    with pytest.raises(HardwareError, match="GPU_WORKERS"):
        device_shares(workers)


def test_a_machine_without_devices_may_have_any_number_of_gpu_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPPO_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    assert device_shares(3) == [{}, {}, {}]


def test_password_port_and_store_stay_what_they_were(folder: Path) -> None:
    first = settings(folder, store="s3://bucket/sppo")
    second = settings(folder)
    assert first == second
    assert first["SPPO_STORE"] == "s3://bucket/sppo"
    assert len(first["PREFECT_API_AUTH_STRING"]) > 30


def test_a_shell_reads_the_environment_file_and_no_one_else_does(folder: Path) -> None:
    made = settings(folder, store=str(folder / "a folder's name"))
    path = folder / "environment"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = subprocess.check_output(["sh", "-c", f'. "{path}"; printf %s "$SPPO_STORE"; command -v prefect'], text=True)
    assert said == f"{folder}/a folder's name{Path(sys.executable).parent / 'prefect'}\n"
    assert read_environment(path)["PREFECT_API_URL"] == made["PREFECT_API_URL"]


def test_a_taken_port_is_refused_when_named_and_passed_by_when_not(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(LaunchError, match=f"port {port} of 127.0.0.1 is taken"):
            settings(folder, port=port)
        (folder / "environment").write_text(f"export PREFECT_API_URL=http://127.0.0.1:{port}/api SPPO_STORE=/s\n")
        assert f":{port}/" not in settings(folder)["PREFECT_API_URL"]


def test_another_store_or_port_than_that_of_what_runs_is_refused(folder: Path) -> None:
    settings(folder, store="/one")
    with pytest.raises(LaunchError, match=r"cpu-1 serve the store /one .* not /other .*make stop"):
        settings(folder, ("server", "cpu-1"), store="/other")
    with pytest.raises(LaunchError, match="stop them first"):
        settings(folder, ("server", "cpu-1"), port=65000)


def test_a_process_is_known_by_its_start_time_as_well_as_its_number(folder: Path) -> None:
    record = background.start(folder, "cpu-1", SLEEP, os.environ)
    assert list(background.alive(folder)) == ["cpu-1"]
    path = folder / "processes" / "cpu-1.json"
    path.write_text(record.model_copy(update={"started": record.started - 100}).model_dump_json())
    assert background.alive(folder) == {}  # the number is a stranger's
    assert not path.exists()
    assert psutil.Process(record.process).is_running()
    background.end([psutil.Process(record.process)], 5)


def test_a_process_whose_parent_was_killed_is_found_by_its_mark_and_the_rest_is_left_alone(folder: Path) -> None:
    parent = f"import subprocess, sys, time; subprocess.Popen({SLEEP!r}); time.sleep(60)"
    stranger = subprocess.Popen(SLEEP)
    record = background.start(folder, "cpu-1", [sys.executable, "-c", parent], os.environ)
    process = psutil.Process(record.process)
    while not process.children():
        pass
    (child,) = process.children()
    process.kill()
    process.wait()
    assert [found.pid for found in background.bearing_mark(folder)] == [child.pid]
    background.end(background.bearing_mark(folder), 5)
    assert not child.is_running()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_time(folder: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    record = background.start(folder, "cpu-1", [sys.executable, "-c", stubborn], os.environ)
    while "ready" not in background.last_lines(folder, "cpu-1"):
        pass
    process = psutil.Process(record.process)
    background.end([process], grace_s=0.3)
    assert not process.is_running()


def test_started_from_a_shell_that_ignores_sigint_a_process_still_obeys_it(folder: Path) -> None:
    start = (
        "import signal, sys, os; from pathlib import Path; from flows import background\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "says = 'import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)'\n"
        f"background.start(Path({str(folder)!r}), 'cpu-1', [sys.executable, '-c', says], os.environ)\n"
        "os.wait()\n"
    )
    subprocess.run([sys.executable, "-c", start], check=True)
    assert background.last_lines(folder, "cpu-1") == "False"
