"""Heavy stages on the workers of a pool, over a real S3 server: shared out, lost, taken up by others, cancelled."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from flows import background
from sppo.runs import IterationIndex, read_iteration
from sppo.store import Artifact, Store

Machine = Any
BEFORE_TRAINING = ("policy", "judge", "split", "generate", "rank", "estimate")
GONE_S = 20.0


def end_with_children(process: psutil.Process) -> None:
    """SIGKILL to a worker, its flow runs and their engines, all at once: a machine that is gone."""
    everyone = [process, *process.children(recursive=True)]
    for each in everyone:
        each.suspend()  # nobody starts anything or tells anyone in between
    for each in everyone:
        each.kill()
    psutil.wait_procs(everyone, 10)


def worker_of(machine: Machine, module: str) -> psutil.Process:
    """A `gpu` worker under which this module runs."""
    for worker in machine.workers().values():
        for process in worker.children(recursive=True):
            if module in " ".join(process.cmdline()):
                return worker
    raise LookupError(module)


def parts_of(store: Store, stage: str, known: set[str]) -> list[str]:
    """Parts of artifacts of a stage that were not there before."""
    return [key for key in store.backend.list(stage) if "/parts/" in key and key not in known]


class Killer(threading.Thread):
    """Kills the worker that makes a stage, once, when a new part of it that counts is there."""

    def __init__(self, machine: Machine, stage: str, module: str, counts: Callable[[str], bool]) -> None:
        super().__init__()
        self.machine, self.stage, self.module, self.counts = machine, stage, module, counts
        self.known = set(machine.store.backend.list(stage))
        self.kept: list[str] = []
        self.problem: BaseException | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            made = [key for key in parts_of(self.machine.store, self.stage, self.known) if self.counts(key)]
            if made:
                try:
                    end_with_children(worker_of(self.machine, self.module))
                except (LookupError, psutil.NoSuchProcess) as problem:
                    self.problem = problem
                    return
                self.kept = made
                self.machine.serve()
                return
            time.sleep(0.02)


def weights(trained: Artifact) -> Any:
    from safetensors.numpy import load_file

    return load_file(trained.path("model.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[IterationIndex, Store]:
    """Iteration 1 in a process of its own, on one core, in a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    at = ["--store", str(folder), "--hardware", "one-core", "--run", "calm", "--iterations", "1"]
    done = machine.sppo("run", "small", *at)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(str(folder), folder / "scratch")
    return read_iteration(store, "calm", 1), store


@pytest.fixture(scope="module")
def disturbed(machine: Machine) -> tuple[str, list[Killer]]:
    """The same iteration on the pool, whose workers die in the middle of generating, ranking and training."""
    killers = []
    flow_run = machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run="stormy")
    for stage, module, counts in (
        ("generate", "sppo.workers.generate", lambda key: "chunk-" in key),
        ("rank", "sppo.workers.rank", lambda key: "chunk-" in key),
        ("train", "sppo.workers.train", lambda key: "checkpoint-" in key),
    ):
        killer = Killer(machine, stage, module, counts)
        killer.start()
        killer.join()
        assert killer.problem is None, f"{stage}: {killer.problem}"
        killers.append(killer)
    machine.wait(flow_run, "COMPLETED")
    return flow_run, killers


def test_workers_that_die_in_the_middle_of_every_stage_change_nothing(
    machine: Machine, undisturbed: tuple[IterationIndex, Store], disturbed: tuple[str, list[Killer]]
) -> None:
    calm, calm_store = undisturbed
    stormy = read_iteration(machine.store, "stormy", 1)
    for stage in BEFORE_TRAINING:
        assert stormy.artifacts[stage] == calm.artifacts[stage], stage  # fingerprint and content
    one, other = weights(calm.opened(calm_store, "train")), weights(stormy.opened(machine.store, "train"))
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) < 1e-5
    assert stormy.opened(machine.store, "train").manifest.counts["resumed_from_step"] >= 4


def test_each_loss_is_seen_and_the_work_taken_up_by_another_attempt(
    machine: Machine, disturbed: tuple[str, list[Killer]]
) -> None:
    flow_run, killers = disturbed
    assert [bool(killer.kept) for killer in killers] == [True, True, True]
    crashed = [run.name for run in machine.children(flow_run) if run.state.type.value == "CRASHED"]
    assert sorted(name.partition(" · ")[2].split()[0] for name in crashed) == ["generate", "rank", "train"]
    log = machine.log(flow_run)
    assert log.count("gave no sign of life for 12 s") + log.count("was lost; what it committed is kept") >= 3


def test_chunks_that_were_committed_before_the_loss_are_not_drawn_again(
    machine: Machine, disturbed: tuple[str, list[Killer]]
) -> None:
    stormy = read_iteration(machine.store, "stormy", 1)
    generated = stormy.opened(machine.store, "generate")
    assert [entry.name for entry in generated.manifest.files] == [f"chunk-{chunk:05d}.parquet" for chunk in range(5)]
    for killer in disturbed[1][:2]:  # 160 prompts in chunks of 32, by two processes, one of which was killed
        made = stormy.opened(machine.store, killer.stage).manifest
        committed = [key for key in killer.kept if made.fingerprint in key]
        assert made.metrics["chunks"] == 5
        assert len(committed) <= made.metrics["chunks_found"] < 5


def test_both_workers_share_a_stages_chunks(machine: Machine, disturbed: tuple[str, list[Killer]]) -> None:
    flow_run, _ = disturbed
    names = {run.name for run in machine.children(flow_run)}
    assert {"stormy · generate 1/2", "stormy · generate 2/2", "stormy · rank 1/2", "stormy · rank 2/2"} <= names
    submitted = {
        line.split("Worker '")[1].split("'")[0]
        for run in machine.children(flow_run)
        if "generate" in run.name
        for line in machine.log(str(run.id)).splitlines()
        if "Worker '" in line
    }
    assert submitted == {"gpu-1", "gpu-2"}


def test_a_workers_output_is_in_the_prefect_log_and_whole_in_the_artifact(
    machine: Machine, disturbed: tuple[str, list[Killer]]
) -> None:
    flow_run, _ = disturbed
    trained = read_iteration(machine.store, "stormy", 1).opened(machine.store, "train")
    [log] = [entry.name for entry in trained.manifest.logs if entry.name.endswith(".log")]
    lines = [line.split(" ", 2)[2] for line in trained.text(log).splitlines() if "sppo.train" in line]
    assert lines
    child = next(run for run in machine.children(flow_run) if "train" in run.name and run.state.is_completed())
    assert lines[-1] in machine.log(str(child.id))


def test_the_same_iteration_again_starts_no_child(machine: Machine, disturbed: tuple[str, list[Killer]]) -> None:
    before = machine.store.backend.list("generate")
    flow_run = machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run="stormy")
    machine.wait(flow_run, "COMPLETED")
    assert machine.children(flow_run) == []
    assert machine.store.backend.list("generate") == before
    assert machine.store.backend.list("train") == [key for key in machine.store.backend.list("train") if "/work/" not in key]


LONG = ["training.stop_epochs=40", "training.schedule_epochs=40"]


def at_work(machine: Machine, module: str, timeout_s: float = 90) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = [process for process in machine.stage_processes() if module in " ".join(process.cmdline())]
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{module} did not start")


def test_a_server_that_is_restarted_in_the_middle_of_training_does_not_disturb_it(
    machine: Machine, disturbed: tuple[str, list[Killer]]
) -> None:
    started = machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run="steady", overrides=LONG)
    [process] = at_work(machine, "sppo.workers.train")
    server = background.alive(machine.folder)["server"]
    end_with_children(server)
    time.sleep(8)  # longer than the watchers' and the launcher's questions are apart
    assert process.is_running()
    machine.serve()
    assert process.is_running()
    machine.wait(started, "COMPLETED")
    assert len([run for run in machine.children(started) if "train" in run.name]) == 1


def test_a_cancelled_run_leaves_no_process_and_no_child(machine: Machine, disturbed: tuple[str, list[Killer]]) -> None:
    longer = ["training.stop_epochs=200", "training.schedule_epochs=200"]
    started = machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run="cancelled", overrides=longer)
    processes = at_work(machine, "sppo.workers.train")
    machine.prefect("flow-run", "cancel", started)
    _, alive = psutil.wait_procs(processes, GONE_S)
    assert alive == []
    machine.wait(started, "CANCELLED", timeout_s=30)
    deadline = time.monotonic() + 30
    while not all(run.state.is_final() for run in machine.children(started)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert {run.state.type.value for run in machine.children(started)} == {"CANCELLED"}


def test_a_cancel_that_no_worker_hears_of_ends_the_processes_all_the_same(
    machine: Machine, disturbed: tuple[str, list[Killer]]
) -> None:
    from prefect.states import Cancelled

    longer = ["training.stop_epochs=200", "training.schedule_epochs=200", "training.learning_rate=0.0002"]
    started = machine.start("sppo-iteration/iter1", recipe="small", hardware="workers", run="unheard", overrides=longer)
    processes = at_work(machine, "sppo.workers.train")
    workers = [process for name, process in background.alive(machine.folder).items() if name != "server"]
    for worker in workers:
        worker.suspend()
    try:
        with machine.client() as client:
            client.set_flow_run_state(started, Cancelled(message="while the workers were away"), force=True)
        _, alive = psutil.wait_procs(processes, GONE_S)
        assert alive == []
    finally:
        for worker in workers:
            worker.resume()


def test_two_machines_train_together_and_end_with_the_same_weights(
    machine: Machine, disturbed: tuple[str, list[Killer]], undisturbed: tuple[IterationIndex, Store]
) -> None:
    overrides = ["training.max_tokens=299"]  # another artifact with the same content: no example is that long
    started = machine.start("sppo-iteration/iter1", recipe="small", hardware="two-nodes", run="pair", overrides=overrides)
    machine.wait(started, "COMPLETED")
    assert sorted(run.name for run in machine.children(started) if "train" in run.name) == [
        "pair · train 1/2",
        "pair · train 2/2",
    ]
    calm, calm_store = undisturbed
    one = weights(calm.opened(calm_store, "train"))
    other = weights(read_iteration(machine.store, "pair", 1).opened(machine.store, "train"))
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) < 1e-5
