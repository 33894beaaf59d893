"""The control plane fails while a run is at work: a machine that is reclaimed, workers that die alone or wake too late, a
server that is away, that forgets everything, or that comes back to a run that was cancelled."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from flows import background
from sppo.store.manifest import Manifest

Machine = Any
AWAY_S = 130 if os.environ.get("SPPO_SOAK") else 15
"""Longer than the two minutes for which Prefect's own clients ask by default; in each test run, longer than all watchers'
questions are apart."""
GRACE_S = 10.0
"""Between a machine's notice and its end."""
GONE_S = 20.0
LONG = ("training.stop_epochs=30", "training.schedule_epochs=30")


def start(machine: Machine, run: str, *overrides: str) -> str:
    told = [*LONG, *overrides]
    return str(machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run=run, overrides=told))


def at_work(machine: Machine, module: str, timeout_s: float = 240) -> list[psutil.Process]:
    """Processes of a stage, once there are some."""
    return wait_for(lambda: [each for each in machine.stage_processes() if module in words(each)], module, timeout_s)


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for(look: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:.0f} s"
        time.sleep(0.1)
    return found


def worker_above(machine: Machine, process: psutil.Process) -> psutil.Process:
    return next(each for each in machine.workers().values() if process in each.children(recursive=True))


def end(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to all at once: nobody starts anything or tells anyone in between."""
    for each in processes:
        each.suspend()
    for each in processes:
        each.kill()
    psutil.wait_procs(processes, 10)


def kill_server(machine: Machine) -> None:
    server = background.alive(machine.folder)["server"]
    end([server, *server.children(recursive=True)])


class Training:
    """A run on the pool, watched until it has trained; then it is called off, for what follows is like other tests'."""

    def __init__(self, machine: Machine, run: str, *overrides: str) -> None:
        self.machine = machine
        self.before = set(machine.store.backend.list("train"))
        self.flow_run = start(machine, run, *overrides)

    def process(self) -> psutil.Process:
        [process] = at_work(self.machine, "sppo.workers.train")
        return process

    def checkpoints(self) -> list[str]:
        """At least one that was committed."""
        return list(wait_for(lambda: self._made("/parts/checkpoint-"), "checkpoint"))

    def finished(self, timeout_s: float = 240) -> Manifest:
        """What it trained."""
        [key] = wait_for(lambda: self._made("/manifest.json"), "trained policy", timeout_s)
        manifest = self.machine.store.open(key.removesuffix("/manifest.json")).manifest
        self.machine.prefect("flow-run", "cancel", self.flow_run)
        self.machine.wait(self.flow_run, "CANCELLED", timeout_s=60)
        return manifest

    def _made(self, what: str) -> list[str]:
        return [key for key in self.machine.store.backend.list("train") if what in key and key not in self.before]

    def children(self, stage: str = "train") -> list[str]:
        """States of the flow runs that worked for it."""
        found = [run for run in self.machine.children(self.flow_run) if f" {stage} " in f"{run.name} "]
        return sorted(run.state.type.value for run in found)


def test_a_machine_that_is_reclaimed_with_notice_leaves_no_process_and_training_goes_on_elsewhere(machine: Machine) -> None:
    training = Training(machine, "spot", "training.learning_rate=0.00011")
    worker = worker_above(machine, training.process())
    saved = training.checkpoints()
    everyone = [worker, *worker.children(recursive=True)]
    for each in reversed(everyone):  # as a machine that shuts down tells all of its processes
        each.terminate()
    _, late = psutil.wait_procs(everyone, GRACE_S)
    end(late)
    assert training.finished().counts["resumed_from_step"] >= 4 * len(saved)
    assert late == []
    machine.serve()


def test_a_worker_that_dies_alone_is_outlived_by_its_work_which_is_not_done_twice(machine: Machine) -> None:
    training = Training(machine, "orphans", "training.learning_rate=0.00012")
    process = training.process()
    end([worker_above(machine, process)])
    machine.serve()
    assert training.finished().counts["resumed_from_step"] == 0
    assert training.children() == ["COMPLETED"]
    assert not process.is_running()


def test_a_worker_that_wakes_after_its_work_was_taken_over_changes_nothing(machine: Machine) -> None:
    training = Training(machine, "sleeper", "training.learning_rate=0.00013")
    process = training.process()
    worker = worker_above(machine, process)
    asleep = [worker, *worker.children(recursive=True)]
    for each in asleep:
        each.suspend()
    try:
        manifest = training.finished()
        objects = machine.store.backend.list("train")
    finally:
        for each in asleep:
            each.resume()
    _, alive = psutil.wait_procs([process], GONE_S)
    assert alive == []
    assert machine.store.open(f"train/{manifest.fingerprint}").manifest == manifest
    left = set(machine.store.backend.list("train")) - set(objects)
    assert all("/files/" in key or "/work/" in key or "/packs/" in key for key in left), left
    assert training.children() in (["COMPLETED", "CRASHED"], ["CANCELLED", "COMPLETED"])  # it may tell of its end when it wakes


def test_a_server_that_is_away_in_the_middle_of_generation_and_of_training_disturbs_neither(machine: Machine) -> None:
    training = Training(machine, "away", "seed=11", "training.learning_rate=0.00014")
    for module, processes in (("sppo.workers.generate", 2), ("sppo.workers.train", 1)):
        wait_for(lambda module=module, processes=processes: len(at_work(machine, module)) == processes, module)
        kill_server(machine)
        time.sleep(AWAY_S)
        machine.serve()
    assert training.finished(timeout_s=400).counts["resumed_from_step"] == 0
    assert [len(training.children(f"generate {share}")) for share in ("1/2", "2/2")] == [1, 1]
    assert len(training.children()) == 1


def test_a_cancel_before_the_server_goes_away_is_heard_when_it_is_back(machine: Machine) -> None:
    from prefect.states import Cancelling

    training = Training(machine, "called-off", "training.stop_epochs=400", "training.schedule_epochs=400")
    process = training.process()
    with machine.client() as client:
        client.set_flow_run_state(training.flow_run, Cancelling(message="by a person"))
    kill_server(machine)
    time.sleep(AWAY_S)
    machine.serve()
    _, alive = psutil.wait_procs([process], GONE_S)
    assert alive == []
    machine.wait(training.flow_run, "CANCELLED", timeout_s=120)
    wait_for(lambda: all(run.state.is_final() for run in machine.children(training.flow_run)), "end of its children")


def test_a_server_that_lost_its_database_ends_the_work_and_the_same_command_goes_on(machine: Machine) -> None:
    told = ("training.learning_rate=0.00015",)
    forgotten = Training(machine, "forgotten", *told)
    process = forgotten.process()
    saved = forgotten.checkpoints()
    kill_server(machine)
    for file in database(machine):
        file.unlink()
    machine.serve()
    _, alive = psutil.wait_procs([process], GONE_S)
    assert alive == []
    again = Training(machine, "forgotten", *told)
    assert again.finished().counts["resumed_from_step"] >= 4 * len(saved)
    assert again.children("generate 1/2") == []


def database(machine: Machine) -> list[Path]:
    found = sorted(machine.folder.rglob("*.db*"))
    assert found
    return found
