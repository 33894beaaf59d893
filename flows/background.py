"""Processes that outlive the terminal that started them, known by process id, start time and a mark.

A process id alone may by now belong to a stranger; the start time says that it does not. The mark is an environment variable,
which every process below them inherits: so those whose parent was killed are found as well.
"""

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

MARK = "SPPO_SERVED_FROM"
CLOCK_S = 1.0
"""By how much two readings of one start time may differ."""


class ProcessRecord(BaseModel):
    """A process that was started, as `<name>.json` keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    process: int
    started: float
    """Seconds since the epoch, by the kernel."""


def start(folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str]) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to `logs/<name>.log`, and keep its record."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # `nohup ... &` leaves SIGINT ignored: inherited, a worker could not be stopped, for it passes SIGTERM on as SIGINT.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with log_file(folder, name).open("ab") as log:
        begun = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: str(folder)},
            cwd=folder,
            start_new_session=True,
        )
    record = ProcessRecord(name=name, process=begun.pid, started=psutil.Process(begun.pid).create_time())
    _record_file(folder, name).write_text(record.model_dump_json() + "\n", encoding="utf-8")
    return record


def log_file(folder: Path, name: str) -> Path:
    """Where a process's output goes."""
    path = folder / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def last_lines(folder: Path, name: str, count: int = 15) -> str:
    """Of a process's output."""
    return "\n  ".join(log_file(folder, name).read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def alive(folder: Path) -> dict[str, psutil.Process]:
    """The recorded processes that still run, by name. Records of others are removed."""
    found: dict[str, psutil.Process] = {}
    for path in sorted((folder / "processes").glob("*.json")):
        record = ProcessRecord.model_validate_json(path.read_text(encoding="utf-8"))
        process = _process(record)
        if process is None:
            path.unlink()
        else:
            found[record.name] = process
    return found


def bearing_mark(folder: Path) -> list[psutil.Process]:
    """Every process started from this folder, and all below them, whether or not their parents live."""
    return bearing(MARK, str(folder))


def bearing(variable: str, value: str) -> list[psutil.Process]:
    """Every other process with this in its environment."""
    return [process for process in psutil.process_iter() if _variable(process, variable) == value]


def with_children(process: psutil.Process | None) -> set[psutil.Process]:
    """A process and all below it; none without it."""
    try:
        return set() if process is None else {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """SIGTERM, and SIGKILL for those that are still there after `grace_s` seconds. Returns when all are gone."""
    asked = [process for process in processes if _signalled(process, signal.SIGTERM)]
    _, left = psutil.wait_procs(asked, timeout=grace_s)
    psutil.wait_procs([process for process in left if _signalled(process, signal.SIGKILL)], timeout=grace_s)


def _record_file(folder: Path, name: str) -> Path:
    path = folder / "processes" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _process(record: ProcessRecord) -> psutil.Process | None:
    try:
        process = psutil.Process(record.process)
        same = abs(process.create_time() - record.started) <= CLOCK_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name) if process.pid != os.getpid() else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended, is a zombie, or is someone else's
        return None


def _signalled(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)  # psutil compares the start time first
    except psutil.NoSuchProcess:
        return False
    return True
