"""Worker processes: argv and environment by hand; failures and time-outs with real processes."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sppo.errors import JudgeError, LaunchError, OutOfMemoryError, StoppedError
from sppo.launch import Worker, halt, processes, run_workers, thread_environment
from sppo.launch.output import LINES_PER_MINUTE
from sppo.launch.processes import rank_environment, worker_argv
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


def test_a_rank_is_numbered_on_its_machine_and_among_all() -> None:
    environment = rank_environment(1, 2, 4, 8, "10.0.0.7", 12345)  # the second rank of the third machine of four
    assert (environment["RANK"], environment["LOCAL_RANK"]) == ("5", "1")
    assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("8", "2")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.7", "12345")


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


def test_what_a_worker_started_itself_ends_with_it(worker, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pid_file = tmp_path / "pid"
    code = "import subprocess, sys\n" + (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))"
    )
    run_workers([worker(code)], 30, silent, _first)
    deadline = time.monotonic() + 5
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline


def test_output_is_passed_on_line_by_line_while_a_worker_runs(worker, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    chatty = worker("import time\nprint('first')\nprint('10 %\\r20 %\\r30 %')\ntime.sleep(1)\nprint('\\x1b[31mlast\\x1b[0m')")
    caplog.set_level(logging.INFO, "sppo.output")
    times: list[float] = []
    caplog.handler.addFilter(lambda record: times.append(record.created) or True)
    run_workers([chatty], 30, silent, _first)
    assert [record.message for record in caplog.records] == ["worker: first", "worker: 30 %", "worker: last"]
    assert times[-1] - times[0] > 0.5


def test_of_very_much_output_a_part_is_passed_on_and_the_rest_counted(worker, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    chatty = worker("for number in range(1000): print(number)")
    caplog.set_level(logging.INFO, "sppo.output")
    run_workers([chatty], 30, silent, _first)
    messages = [record.message for record in caplog.records]
    assert messages[:60] == [f"worker: {number}" for number in range(LINES_PER_MINUTE)]
    left_out = int(messages[-1].split()[1])
    assert messages[-1].endswith("more lines are in its log")
    assert 900 < left_out <= 1000 - LINES_PER_MINUTE
    assert len(chatty.log.read_text().splitlines()) == 1000


def test_a_device_out_of_memory_has_an_error_of_its_own(worker) -> None:  # type: ignore[no-untyped-def]
    bad = worker(
        "import torch\nfrom sppo.launch import worker_main\n"
        "def work(config): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')\nworker_main(work)"
    )
    settings = "train.tokens_per_device, rank.tokens_per_batch or generate.max_concurrent in the hardware file"
    with pytest.raises(OutOfMemoryError, match=f"^worker: CUDA out of memory; lower {settings}"):
        run_workers([bad], 60, silent, _first)


def test_a_halt_ends_the_workers_and_starts_no_more(worker, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(processes, "_halted", [])
    threading.Timer(0.5, halt, ["flow run cancelled"]).start()
    started = time.monotonic()
    with pytest.raises(StoppedError, match=r"^worker: flow run cancelled; what it committed is kept$"):
        run_workers([worker("import time; time.sleep(60)")], 30, silent, _first)
    assert time.monotonic() - started < 10
    with pytest.raises(StoppedError):
        run_workers([worker("raise SystemExit(1)")], 30, silent, _first)
