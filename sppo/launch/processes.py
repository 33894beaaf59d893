"""Worker processes: how they are started, watched and ended.

A heavy stage runs as `python -m sppo.workers.<stage> run.json`, one process a device. Its output goes to a log file that we
follow, its progress to a small file that we poll; if one of several fails, the others are ended and the error carries the last
lines. No process outlives the one that started it.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from sppo import errors
from sppo.errors import LaunchError, OutOfMemoryError, SppoError, StoppedError, TimeUpError
from sppo.launch import memory
from sppo.launch.output import Tail
from sppo.progress import Progress, Report, read_progress
from sppo.store.room import full_disk, no_room

POLL_S = 0.1
GRACE_S = 10.0
"""Between SIGTERM and SIGKILL."""
TAIL_LINES = 20
PARENT = "SPPO_PARENT_PROCESS"
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


@dataclass(frozen=True)
class Worker:
    """One process to start."""

    module: str
    """Such as `sppo.workers.rank`."""
    config: Path
    """Its run.json."""
    log: Path
    progress: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""
    label: str = "worker"
    """For people: `generate 1/2, process 0`."""


def worker_main(work: Callable[[Path], None]) -> None:
    """The whole of a worker module's `__main__`: do the work of the run.json named on the command line.

    What the worker refuses on purpose reaches its parent as the same error, in the same words."""
    _end_with_parent()
    config = Path(sys.argv[1])
    try:
        work(config)
    except SppoError as error:
        _refuse(config, error)
        raise
    except Exception as error:
        told = memory.of_error(error, _own_module()) or (no_room(error) if isinstance(error, OSError) else None)
        if told is not None:
            _refuse(config, told)
        raise


def _own_module() -> str:
    """The module that this process runs, such as `sppo.workers.train`."""
    specification = sys.modules["__main__"].__spec__
    return "" if specification is None else specification.name


def _refuse(config: Path, error: SppoError) -> None:
    refusal = {"error": type(error).__name__, "message": str(error)}
    with contextlib.suppress(OSError):  # a full disk takes no word of its being full: the file alone says it
        _refusal_file(config, os.environ).write_text(json.dumps(refusal), encoding="utf-8")


def _refusal_file(config: Path, environment: Mapping[str, str]) -> Path:
    return config.with_suffix(f".{environment.get('RANK', '0')}.refusal")  # ranks share one run.json


def _end_with_parent() -> None:
    """The kernel ends this process when the one that started it dies, however that dies."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit("the process that started this worker is gone")


KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
"""For glibc: what a training step on a CPU frees stays with the process for the next one. Given back and asked for again, each
page costs a fault, a tenth of a step's time."""


def worker_argv(worker: Worker) -> list[str]:
    """The command: always a module and one resolved run.json, never a string of flags."""
    return [sys.executable, "-m", worker.module, str(worker.config)]


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that hold a process to a number of CPU threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads take the cores of those they wait for: 750 tokens/s for 10,500
        "TOKENIZERS_PARALLELISM": "false",
    }


def rank_environment(local: int, local_size: int, first: int, size: int, address: str, port: int) -> dict[str, str]:
    """What torch.distributed reads: the `local`-th of a machine's ranks, which are numbered from `first`."""
    return {
        "RANK": str(first + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def write_config(config: BaseModel, path: Path) -> Path:
    """One resolved run.json."""
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return path


_halted: list[str] = []


def halt(reason: str) -> None:
    """End the workers of this process, whichever thread waits for them, and start no more: its run is over."""
    _halted.append(reason)


def start_afresh() -> None:
    """Forget an earlier `halt`: another run begins in this process."""
    _halted.clear()


def check_going_on(label: str) -> None:
    """Raises StoppedError after `halt`."""
    if _halted:
        raise StoppedError(f"{label}: {_halted[0]}; what it committed is kept")


def run_workers(
    workers: Sequence[Worker],
    timeout_s: float,
    report: Report,
    combine: Callable[[Sequence[Progress]], Progress],
) -> None:
    """Start all workers, pass on their output and combined progress, wait for all. No process outlives this call.

    Raises what the first worker to fail refused on purpose, in its own words; else LaunchError with its exit status and last
    lines, or when the time is up; StoppedError after `halt`."""
    processes: list[subprocess.Popen[bytes]] = []
    kills = memory.kernel_kills()
    tails = [Tail(worker.log, worker.label) for worker in workers]
    deadline = time.monotonic() + timeout_s
    try:
        last: Progress | None = None
        while True:
            check_going_on(workers[0].label)
            if not processes:
                processes.extend(_start(worker) for worker in workers)
            codes = [process.poll() for process in processes]
            for tail in tails:
                tail.pass_on()
            last = _pass_on(workers, report, combine, last)
            failed = [index for index, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                # a rank that refused takes its peers down with it: its words come before theirs
                told = [at for at in failed if _refusal_file(workers[at].config, workers[at].environment).is_file()]
                worst = (told or failed)[0]
                raise _failure(workers[worst], codes[worst], kills)
            if all(code == 0 for code in codes):
                return
            if time.monotonic() > deadline:
                raise TimeUpError(
                    f"{workers[0].module} was not done after {timeout_s:.0f} s and was ended; what it committed is kept: "
                    "run again to continue, or raise timeout_s in the hardware file"
                )
            time.sleep(POLL_S)
    finally:
        _end(processes)
        for tail in tails:
            tail.close()


def _start(worker: Worker) -> "subprocess.Popen[bytes]":
    worker.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **worker.environment, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    with worker.log.open("ab") as log:
        return subprocess.Popen(
            worker_argv(worker),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # one of its own, so that what it started can be ended with it
        )


def _pass_on(
    workers: Sequence[Worker],
    report: Report,
    combine: Callable[[Sequence[Progress]], Progress],
    last: Progress | None,
) -> Progress | None:
    seen = [progress for worker in workers if (progress := read_progress(worker.progress)) is not None]
    if not seen:
        return last
    now = combine(seen)
    if now != last:
        report(now)
    return now


def _failure(worker: Worker, code: int | None, kills: int) -> SppoError:
    refusal = _refusal_file(worker.config, worker.environment)
    if refusal.is_file():
        try:
            told = json.loads(refusal.read_text(encoding="utf-8"))
        except ValueError:
            return full_disk(refusal)
        kind = errors.named(told["error"])
        return kind(f"{worker.label}: {told['message']}" if kind is OutOfMemoryError else told["message"])
    lines = worker.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    memory_ended = memory.of_end(code, lines, kills, worker.module)
    if memory_ended is not None:
        return OutOfMemoryError(f"{worker.label}: {memory_ended}")
    cause = f"exit status {code}"
    if code is not None and code < 0:
        cause = f"signal {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            cause += " (often: out of memory)"
    shown = "\n  ".join(lines)
    return LaunchError(f"{worker.module} ended with {cause}; its last lines, from {worker.log}:\n  {shown}")


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for process in processes:
        _end_group(process.pid)


def _end_group(leader: int) -> None:
    """What a worker started itself, such as an engine's own processes, and left behind."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody left; on macOS a group of zombies answers EPERM
        return
