"""A process under test that is ready to start: one attempt at a pipeline, until none of its processes is left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

CLIENT = Path(__file__).with_name("client.py")
DEATH_S = 10.0
"""For the workers of a run that was killed to end."""


@dataclass(frozen=True)
class Attempt:
    """One start of the pipeline and how it ended."""

    state: Literal["done", "refused", "broken", "killed"]
    error: str = ""
    message: str = ""


class Client:
    """A process that starts pipelines in milliseconds; usable by one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "PYTEST_"))}
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with (folder / "client.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(CLIENT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**plain, **one_thread, "TOKENIZERS_PARALLELISM": "false"},
                text=True,
            )
        self._pid = 0

    def wait_until_ready(self) -> None:
        """Until everything is imported."""
        self._heard()

    def run(self, pipeline: str, url: str, scratch: Path, world: dict[str, str], environment: dict[str, str]) -> Attempt:
        """One attempt, from its start until none of its processes is left."""
        outcome = self.folder / "outcome.json"
        outcome.unlink(missing_ok=True)
        told = {"pipeline": pipeline, "url": url, "scratch": str(scratch), "world": world, "environment": environment}
        told |= {"outcome": str(outcome), "log": str(self.folder / "pipeline.log")}
        self._say(told)
        self._pid = int(self._heard()["process"])
        status = int(self._heard()["status"])
        _wait_for_session(self._pid)
        if status == -signal.SIGKILL:
            return Attempt("killed")
        return Attempt(**json.loads(outcome.read_text()))

    def kill(self) -> None:
        """SIGKILL to the pipeline under way; its workers end with it."""
        os.kill(self._pid, signal.SIGKILL)

    def suspend(self) -> None:
        """Stop the pipeline under way and its workers, as a machine that sleeps does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in psutil.pids():
            if _session(pid) == self._pid:
                os.kill(pid, number)

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _say(self, told: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(told) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def _heard(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"the client ended; its log is {self.folder / 'client.log'}")
        found: dict[str, Any] = json.loads(line)
        return found


def _wait_for_session(leader: int) -> None:
    """Raises AssertionError if a process of a run outlives it."""
    deadline = time.monotonic() + DEATH_S
    while alive := [pid for pid in psutil.pids() if _session(pid) == leader]:
        assert time.monotonic() < deadline, f"processes {alive} outlived the run that started them"
        time.sleep(0.005)


def _session(pid: int) -> int | None:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state[0] == "Z" else int(state[3])
