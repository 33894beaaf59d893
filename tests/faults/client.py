"""The process under test, started in milliseconds: `python client.py` imports everything once and then forks.

It reads one JSON object a line from standard input, runs that pipeline in a child, and answers with the child's process id and,
when it has ended, its status. The pipeline's worker processes are forked likewise, from a child that is kept clean for that:
what is replaced of the product is how a process starts, a fork of a ready interpreter in place of `python -m`.
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

READY = (
    "torch",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "transformers.integrations.deepspeed",
    "s3fs",
    "aiobotocore.session",
    "botocore.handlers",
    "awscrt.s3",
    "awscrt.auth",
    "pyarrow.parquet",
    "pyarrow.compute",
    "scipy.stats",
    "tensorboard.summary.writer.event_file_writer",
    "sppo.engines.transformers_engine",
    "sppo.judges.network",
    "sppo.judges.pairrm",
    "sppo.train.loop",
    "sppo.world.language",
    "faults.boundaries",
    "faults.workload",
)
"""Imported before the first fork."""
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until standard input ends."""
    _import_everything()
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            _pipeline(told)
        _say({"process": child})
        _, status = os.waitpid(child, 0)
        _say({"status": os.waitstatus_to_exitcode(status)})


def _import_everything() -> None:
    import importlib

    from sppo.train.engine import prepare_environment

    prepare_environment("cpu")
    for name in READY:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith(("sppo", "faults")):
                raise
    from botocore.loaders import JSONFileLoader
    from faults import workload

    import sppo.generate
    from sppo.launch import processes
    from sppo.store import Workspace
    from sppo.train import loop

    sppo.generate.CHUNK = workload.CHUNK
    processes.POLL_S = 0.01
    _remember(JSONFileLoader, "load_file")
    _do_once()
    _tell_of_parts(Workspace)
    _tell_of_steps(loop)
    gc.freeze()  # a collection in a child would touch, and so copy, every page it shares with us
    _say({"ready": os.getpid()})


def _remember(owner: type, name: str) -> None:
    """Botocore's descriptions of services, which every new client parses anew, for a quarter of a second."""
    plain, known = getattr(owner, name), {}

    def once(self: object, path: str) -> Any:
        if path not in known:
            known[path] = plain(self, path)
        return known[path]

    setattr(owner, name, once)


def _do_once() -> None:
    """What libraries do at first use and keep, which every child would do anew; and certificates, of which nobody is asked."""
    import ssl

    import botocore.session
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    ssl.SSLContext.load_verify_locations = lambda *paths, **named: None  # type: ignore[method-assign]
    ssl.SSLContext.load_default_certs = lambda *purpose: None  # type: ignore[method-assign]
    keys = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
    botocore.session.get_session().create_client("s3", region_name="us-east-1", **keys)
    get_checkpoint_conversion_mapping("llama")


def _tell_of_parts(workspace: Any) -> None:
    """Write down each part that was made, before it is committed."""
    plain = workspace.commit_part

    def told(self: Any, part: str, *arguments: Any, **named: Any) -> Any:
        _write_down(f"{self.stage}/{self.fingerprint[:8]}/{part}")
        return plain(self, part, *arguments, **named)

    workspace.commit_part = told


def _tell_of_steps(loop: Any) -> None:
    """Write down each optimizer step."""
    plain = loop._step

    def told(*arguments: Any) -> Any:
        _write_down(f"train/step-{arguments[-1]}")
        return plain(*arguments)

    loop._step = told


def _write_down(made: str) -> None:
    with open(os.environ["FAULTS_WORK"], "a") as stream:
        stream.write(f"{made} {os.getpid()}\n")


def _pipeline(told: Mapping[str, Any]) -> NoReturn:
    """One attempt at a pipeline: says how it ended in the file `outcome`."""
    os.setsid()
    _die_with_parent()
    _quiet(told["log"])
    os.environ.update(told["environment"])
    spawner = Spawner()
    from faults import boundaries
    from faults.workload import PIPELINES

    from sppo.errors import SppoError
    from sppo.launch import processes

    processes._start = spawner.start  # type: ignore[assignment]
    _change_leases(told["environment"])
    boundaries.watch_files("client")
    outcome = {"state": "done", "error": "", "message": ""}
    try:
        PIPELINES[told["pipeline"]](told["url"], Path(told["scratch"]), told["world"])
    except SppoError as error:
        outcome = {"state": "refused", "error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001  a user would see it
        outcome = {"state": "broken", "error": type(error).__name__, "message": traceback.format_exc()}
    with open(told["outcome"], "w") as stream:
        json.dump(outcome, stream)
    os._exit(0)  # nothing of it is needed any more


def _change_leases(environment: Mapping[str, str]) -> None:
    """A term that a test can wait for, or a run that believes to be alone, as one whose lease ran out does."""
    from sppo.store import leases

    if "FAULTS_TERM_S" in environment:
        leases.TERM_S, leases.POLL_S = float(environment["FAULTS_TERM_S"]), 0.1
    if "FAULTS_ALONE" in environment:
        leases.Lease.take = lambda self: ""  # type: ignore[method-assign]


class Spawner:
    """A child without threads that forks workers on request: the pipeline itself has threads soon."""

    def __init__(self) -> None:
        self._socket, far = socket.socketpair()
        self.process = os.fork()
        if self.process == 0:
            self._socket.close()
            _die_with_parent()
            _spawn(far)
        far.close()
        self._lines = self._socket.makefile("r")
        self._started: Counter[str] = Counter()

    def start(self, worker: Any) -> "Forked":
        """As `sppo.launch.processes` starts a worker: a module with a run.json, its output in a log."""
        from sppo.launch.processes import PARENT

        worker.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **worker.environment, PARENT: str(self.process)}
        self._started[worker.module] += 1
        name = f"{worker.module.removeprefix('sppo.workers.')}-{self._started[worker.module]}"
        told = {"module": worker.module, "config": str(worker.config), "log": str(worker.log), "name": name}
        told["environment"] = environment
        return Forked(self, int(self.ask({"start": told})))

    def ask(self, question: Mapping[str, Any]) -> Any:
        self._socket.sendall(json.dumps(question).encode() + b"\n")
        return json.loads(self._lines.readline())


class Forked:
    """What of `subprocess.Popen` the launcher uses."""

    def __init__(self, spawner: Spawner, pid: int) -> None:
        self.pid = pid
        self._spawner = spawner
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._spawner.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        if self._code is None:
            self._code = self._spawner.ask({"wait": self.pid})
        return self._code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _spawn(asked: socket.socket) -> NoReturn:
    for line in asked.makefile("r"):
        question = json.loads(line)
        if "start" in question:
            answer: int | None = os.fork()
            if answer == 0:
                asked.close()
                _worker(question["start"])
        else:
            pid = question.get("poll") or question["wait"]
            ended, status = os.waitpid(pid, os.WNOHANG if "poll" in question else 0)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        asked.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _worker(told: Mapping[str, Any]) -> NoReturn:
    os.setpgid(0, 0)
    _quiet(told["log"])
    os.environ.clear()
    os.environ.update(told["environment"])
    from faults import boundaries

    boundaries.watch_files(told["name"])
    sys.argv = [told["module"], told["config"]]
    code = 0
    try:
        runpy.run_module(told["module"], run_name="__main__", alter_sys=True)
        _finish_threads()
    except BaseException as error:  # noqa: BLE001  as the interpreter does at its end
        traceback.print_exc()
        code = 0 if isinstance(error, SystemExit) and error.code in (None, 0) else 1
        _finish_threads()
    sys.stderr.flush()
    os._exit(code)


def _finish_threads() -> None:
    """What Python does when it ends: wait for what was handed to threads."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _quiet(log: str) -> None:
    with open(log, "ab") as stream, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _say(told: Mapping[str, int]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
