"""A group: the processes of one heavy stage on one machine, described so that any machine can start them.

A stage makes groups and hands them to a *launcher*: `HERE` starts the group in this process's machine; the shell has one that
sends each group to a worker of a pool. Either way `run_group` does the work, with the same run.json for the same process.
"""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel

from sppo.configuration import Frozen
from sppo.errors import LaunchError
from sppo.launch.devices import device_environment, lent
from sppo.launch.processes import (
    KEEPS_MEMORY,
    Worker,
    free_port,
    rank_environment,
    run_workers,
    thread_environment,
    worker_main,
)
from sppo.launch.work import WorkRecord, beating
from sppo.progress import Progress, Report
from sppo.store import FileEntry, Store, Workspace

RATE = " tokens/s"
MEETING_S = 600.0
"""How long machines wait for the first one to say where it is."""
NODE_ADDRESS = "SPPO_NODE_ADDRESS"
Work = TypeVar("Work", bound=BaseModel)


class Place(Frozen):
    """Where a process works: filled in on the machine that starts it."""

    store: str
    """URL."""
    scratch: Path
    """Folder for downloads, shared by all on this machine."""
    folder: Path
    """Folder of this attempt, shared by the processes of the group."""
    index: int
    """Of the process in its group."""

    @property
    def progress(self) -> Path:
        return self.folder / f"worker-{self.index}.progress.json"

    @property
    def result(self) -> Path:
        """Where a process leaves what it measured, if anything, as a JSON object."""
        return self.folder / f"worker-{self.index}.result.json"

    def open_store(self) -> Store:
        return Store(self.store, self.scratch)


class Ranks(Frozen):
    """Of a group whose processes work as one, possibly with groups on other machines."""

    first: int
    """Rank of this group's first process."""
    size: int
    """Ranks of all groups."""
    meeting: str | None
    """Key in the store at which the first group says where it is; None if it is the only one."""


class Group(Frozen):
    """Processes of one stage on one machine."""

    stage: str
    fingerprint: str
    """Of the artifact in the making."""
    number: int
    """1 .. of."""
    of: int
    module: str
    """Such as `sppo.workers.rank`."""
    works: tuple[dict[str, Any], ...]
    """What each process is told, besides its place."""
    device: Literal["cpu", "cuda"]
    devices_each: int
    threads: int
    """Of the machine, shared out among the processes."""
    timeout_s: int
    ranks: Ranks | None = None

    @property
    def label(self) -> str:
        """For people: `generate 1/2`."""
        return self.stage if self.of == 1 else f"{self.stage} {self.number}/{self.of}"


class Launcher(Protocol):
    """Who starts groups, and where."""

    def machines(self, stage: str, fingerprint: str) -> int:
        """Into how many groups a stage that can be shared out is divided."""

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        """Run all groups to their end: the records they left. Raises what the first to fail refused, or LaunchError."""


class Here:
    """Groups run on this machine, one after the other."""

    def machines(self, stage: str, fingerprint: str) -> int:
        return 1

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        return [run_group(group, store, uuid.uuid4().hex, report) for group in groups]


HERE = Here()


def run_work(kind: type[Work], work: Callable[[Place, Work], None]) -> None:
    """The whole of a worker module's `__main__`: read run.json, do the work."""

    def from_file(config: Path) -> None:
        told = json.loads(config.read_text(encoding="utf-8"))
        work(Place.model_validate_json(json.dumps(told["place"])), kind.model_validate_json(json.dumps(told["work"])))

    worker_main(from_file)


def run_group(group: Group, store: Store, attempt: str, report: Report) -> WorkRecord:
    """Start a group's processes, watch them to their end, keep their logs and what they measured.

    Raises what the first process to fail refused, or LaunchError. A record in the store says all the while how it stands."""
    count = len(group.works) * group.devices_each
    begun = beating(store, group.stage, group.fingerprint, group.number, group.of, attempt)
    with store.workspace(group.stage, group.fingerprint) as workspace, begun as beats:
        with lent(count, group.device, store.scratch, f"{group.label} of {group.fingerprint[:8]}") as devices:
            began = time.monotonic()
            beats.write(devices=devices)
            workers = _workers(group, store, workspace, devices)

            def show(progress: Progress) -> None:
                beats.show(progress)
                report(progress)

            run_workers(workers, group.timeout_s, show, combine)
            held = (time.monotonic() - began) * (len(devices) or len(workers))
        results = tuple(_result(worker.config) for worker in workers)
        return beats.finish(results, _kept_logs(workers, workspace), held)


def keep_accounts(workspace: Workspace, records: Sequence[WorkRecord]) -> None:
    """Let an artifact keep its groups' logs and say what they cost."""
    workspace.logs.extend(entry for record in records for entry in record.logs)
    spent = sum(record.device_seconds for record in records)
    workspace.metrics["device_seconds"] = workspace.metrics.get("device_seconds", 0.0) + spent


def _workers(group: Group, store: Store, workspace: Workspace, devices: tuple[str, ...]) -> list[Worker]:
    threads = thread_environment(max(1, group.threads // len(group.works)))
    meeting = None if group.ranks is None else _meet(group, store)
    workers = []
    for index, work in enumerate(group.works):
        place = Place(store=store.url, scratch=store.scratch, folder=workspace.folder, index=index)
        config = workspace.folder / f"worker-{index}.run.json"
        config.write_text(json.dumps({"place": place.model_dump(mode="json"), "work": work}, indent=1) + "\n", encoding="utf-8")
        environment = {**threads}
        if group.ranks is None:
            own = devices[index * group.devices_each : (index + 1) * group.devices_each]
            environment |= device_environment(group.device, own)
        elif meeting is not None:
            environment |= device_environment(group.device, devices)  # a rank finds its own by LOCAL_RANK
            environment |= rank_environment(index, len(group.works), group.ranks.first, group.ranks.size, *meeting)
            environment |= KEEPS_MEMORY if group.device == "cpu" else {}
        log = workspace.log_path(f"{group.number}-of-{group.of}-worker-{index}")
        label = group.label if len(group.works) == 1 else f"{group.label}, process {index}"
        workers.append(Worker(group.module, config, log, place.progress, environment, label))
    return workers


def _result(config: Path) -> dict[str, Any]:
    path = config.with_name(config.name.replace(".run.json", ".result.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _kept_logs(workers: Sequence[Worker], workspace: Workspace) -> tuple[FileEntry, ...]:
    for worker in workers:
        workspace.add_log(worker.log)
    return tuple(workspace.logs)


def _meet(group: Group, store: Store) -> tuple[str, int]:
    """Address and port of the first rank. The first group says where it is; the others wait for that."""
    ranks = group.ranks
    if ranks is None or ranks.meeting is None:
        return "127.0.0.1", free_port()
    if ranks.first == 0:
        address = own_address()
        port = free_port(address)
        store.backend.replace(ranks.meeting, json.dumps({"address": address, "port": port}).encode())
        return address, port
    deadline = time.monotonic() + MEETING_S
    while (content := store.backend.read(ranks.meeting)) is None:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{group.label}: the first machine did not say within {MEETING_S:.0f} s where it is; expected one worker of "
                "the pool free for each of train.nodes: start more workers, or lower train.nodes"
            )
        time.sleep(1.0)
    told = json.loads(content)
    return str(told["address"]), int(told["port"])


def own_address() -> str:
    """Where other machines reach this one: SPPO_NODE_ADDRESS, else the address it would send from. Nothing is sent."""
    named = os.environ.get(NODE_ADDRESS)
    if named:
        return named
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation: chooses a route, no packet leaves
            return str(probe.getsockname()[0])
        except OSError as problem:
            raise LaunchError(
                f"this machine has no route to others ({problem}); expected an address that they reach: set {NODE_ADDRESS}"
            ) from problem


def combine(seen: Sequence[Progress]) -> Progress:
    """Progress of several processes or groups as one: counts added up, token rates too."""
    rates = [rate for progress in seen if (rate := _rate(progress.note)) is not None]
    return Progress(
        stage=seen[0].stage,
        done=sum(progress.done for progress in seen),
        total=sum(progress.total for progress in seen),
        unit=seen[0].unit,
        note=f"{sum(rates) / 1000:.1f}k{RATE}" if rates else next((progress.note for progress in seen if progress.note), ""),
    )


def _rate(note: str) -> float | None:
    """Tokens a second, of a note that says nothing else: `4.1k tokens/s`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)" + RATE, note)
    return None if found is None else float(found[1]) * (1000 if found[2] else 1)
