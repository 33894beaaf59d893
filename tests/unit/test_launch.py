"""Worker processes: argv and environment by hand; failures and time-outs with real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sppo.errors import JudgeError, LaunchError
from sppo.launch import Worker, device_environment, rank_environment, run_workers, thread_environment, worker_argv
from sppo.progress import Progress, ProgressFile, silent

MODULE = "sppo_test_worker"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes a worker that runs the given Python text as its module."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code: str, name: str = MODULE) -> Worker:
        (tmp_path / f"{name}.py").write_text(code)
        return Worker(name, tmp_path / "run.json", tmp_path / f"{name}.log", tmp_path / f"{name}.progress")

    return make


def _first(progress: object) -> Progress:
    return progress[0]  # type: ignore[index,no-any-return]


def test_argv_is_a_module_and_one_file(tmp_path: Path) -> None:
    worker = Worker("sppo.workers.rank", Path("run.json"), tmp_path, tmp_path)
    assert worker_argv(worker)[1:] == ["-m", "sppo.workers.rank", "run.json"]


def test_each_process_sees_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_environment("cuda", 1, 2) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert device_environment("cpu", 1, 2) == {}


def test_devices_are_taken_from_the_ones_we_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert device_environment("cuda", 1, 1) == {"CUDA_VISIBLE_DEVICES": "6"}
    with pytest.raises(LaunchError, match="needs GPUs 2 to 2 of CUDA_VISIBLE_DEVICES=4,6, which holds 2"):
        device_environment("cuda", 2, 1)


def test_ranks_find_each_other_on_loopback() -> None:
    environment = rank_environment(1, 2, 12345)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("1", "2")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "12345")


def test_threads_are_shared_out() -> None:
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


def test_a_failed_worker_is_reported_with_its_status_and_last_lines(worker) -> None:  # type: ignore[no-untyped-def]
    bad = worker("print('loading'); raise SystemExit('the judge has no weights')")
    with pytest.raises(LaunchError, match=r"exit status 1(.|\n)*loading\n  the judge has no weights"):
        run_workers([bad], 30, silent, _first)


def test_when_one_worker_fails_the_others_are_ended(worker, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pid_file = tmp_path / "pid"
    sleeper = worker(f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)", "sleeper")
    bad = worker(
        f"import os, time\nwhile not os.path.exists({str(pid_file)!r}): time.sleep(0.02)\ntime.sleep(0.1)\nos._exit(3)", "bad"
    )
    with pytest.raises(LaunchError, match="bad ended with exit status 3"):
        run_workers([sleeper, bad], 30, silent, _first)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_killed_worker_names_the_signal(worker) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LaunchError, match=r"signal SIGKILL \(often: out of memory\)"):
        run_workers([worker("import os; os.kill(os.getpid(), 9)")], 30, silent, _first)


def test_a_worker_past_its_time_is_ended(worker) -> None:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    with pytest.raises(LaunchError, match="was not done after 1 s and was ended; what it committed is kept"):
        run_workers([worker("import time; time.sleep(60)")], 1, silent, _first)
    assert time.monotonic() - started < 10


def test_what_a_worker_refuses_reaches_the_parent_as_the_same_error(worker) -> None:  # type: ignore[no-untyped-def]
    bad = worker(
        "from sppo.errors import JudgeError\nfrom sppo.launch import worker_main\n"
        "def work(config): raise JudgeError('tensor head_layer.1.bias is missing')\nworker_main(work)"
    )
    with pytest.raises(JudgeError, match=r"^tensor head_layer.1.bias is missing$"):
        run_workers([bad], 30, silent, _first)


def test_a_worker_does_not_outlive_the_process_that_started_it(worker, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pid_file = tmp_path / "pid"
    sleeper = worker(
        "import os, time\nfrom pathlib import Path\nfrom sppo.launch import worker_main\n"
        f"def work(config): Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)\nworker_main(work)"
    )
    paths = [str(sleeper.config), str(sleeper.log), str(sleeper.progress)]
    code = (
        "from pathlib import Path\nfrom sppo.launch import Worker, run_workers\nfrom sppo.progress import silent\n"
        f"worker = Worker({sleeper.module!r}, *(Path(path) for path in {paths}))\n"
        "run_workers([worker], 60, silent, lambda seen: seen[0])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.02)
        parent.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid_file.read_text()}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid_file.read_text()}/stat").read_text().split()[2] == "Z":
            break  # ended, and nobody here reaps it
        time.sleep(0.02)
    assert time.monotonic() < deadline


def test_progress_reaches_the_parent(worker, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = worker("")
    ProgressFile(done.progress)(Progress(stage="rank", done=3, total=3, unit="pairs"))
    seen: list[Progress] = []
    run_workers([done], 30, seen.append, _first)
    assert seen == [Progress(stage="rank", done=3, total=3, unit="pairs")]
