"""Groups on the workers of a pool: each is a flow run of its own, a child of the run that needs it.

The server says which workers there are and whether a child is over; the store says how far it is, what came of it and whether
it still lives. A child that is at work already, of this run or of another, is waited for and never started twice.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.children import (
    CHILD,
    asked_once,
    cancel,
    children_of,
    is_over,
    is_wanted,
    server,
    shared_among,
    state_of,
    tag,
    under_way,
)
from flows.jobs import job_key, write_job
from sppo import errors
from sppo.errors import LaunchError, RunError, SppoError, StoppedError, StoreError
from sppo.hardware import Pool
from sppo.launch import Group, WorkRecord, combine
from sppo.launch.processes import check_going_on
from sppo.launch.work import all_work, read_work
from sppo.progress import Progress, Report
from sppo.store import Store

log = logging.getLogger(__name__)

POLL_S = 1.0
TELL_S = 60.0
"""Between two lines that say that a child waits for a worker."""
OUTAGE_S = 3600.0
"""How long the server may be away while children work."""


@dataclass
class Child:
    """A group's flow run, as last seen."""

    group: Group
    id: UUID
    run: FlowRun
    record: WorkRecord | None = None
    changed: float = field(default_factory=time.monotonic)
    """When the record or the state last changed, by our clock: those of other machines may be wrong."""
    over: bool = False


class PoolLauncher:
    """Sends groups to the workers of a pool.

    store: as flows name it, for a worker finds its own credentials."""

    def __init__(self, pool: Pool, run: str, store: str) -> None:
        self.pool = pool
        self.run_name = run
        self.store_name = store

    def machines(self, stage: str, fingerprint: str) -> int:
        """As many as an unfinished attempt was shared out among; else the file's number, or the workers online now."""
        with server() as client:
            at_work = under_way(client, stage, fingerprint)
            if at_work:
                return max(shared_among(run) for run in at_work)
            if self.pool.jobs != "workers":
                return self.pool.jobs
            return max(1, self._workers_online(client))

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        """Start a child for each group and wait for all. Raises what the first to fail refused, in its own words; LaunchError
        for one that crashed or fell silent, StoppedError for one that was cancelled."""
        from prefect.runtime import flow_run

        with server() as client:
            parent = str(flow_run.root_flow_run_id)
            self._wait_for_others(client, groups[0], store, parent)
            gang = groups[0].ranks is not None
            if gang:
                self._end_remains(client, groups, store)
            children = [self._submit(client, group, store, parent) for group in groups]
            try:
                return self._wait(client, children, store, report)
            except SppoError as error:
                # ranks wait for each other in vain; others may go on if a worker was lost, for the next attempt finds them,
                # and all may if it is we who cannot reach the store
                if type(error) is not StoreError and (gang or type(error) is not LaunchError):
                    cancel(client, (child.run for child in children), f"{groups[0].label}: {error}")
                raise

    def _workers_online(self, client: SyncPrefectClient) -> int:
        try:
            workers = client.read_workers_for_work_pool(self.pool.name)
        except ObjectNotFound as problem:
            raise RunError(
                f"the server has no work pool {self.pool.name!r}, which the hardware file names; expected one with workers: "
                f"`sppo serve` makes it on this machine, `prefect work-pool create {self.pool.name} --type process` anywhere"
            ) from problem
        online = sum(worker.status == "ONLINE" for worker in workers)
        if not online:
            log.warning("no worker of pool %s is online; start one with: prefect worker start --pool %s", *[self.pool.name] * 2)
        return online

    def _wait_for_others(self, client: SyncPrefectClient, group: Group, store: Store, parent: str) -> None:
        """Another run may be making the same artifact: let it, and find what it has made."""
        others = [run for run in under_way(client, group.stage, group.fingerprint) if run.parameters.get("parent") != parent]
        if others:
            log.info("%s: waits for flow run %s, which makes the same", group.stage, others[0].name)
            self._outlast(client, others, group, store)

    def _end_remains(self, client: SyncPrefectClient, groups: Sequence[Group], store: Store) -> None:
        """Ranks that lost some of their own cannot be joined again: all start anew, or all still run."""
        mine = under_way(client, groups[0].stage, groups[0].fingerprint)
        if len(mine) not in (0, len(groups)):
            cancel(client, mine, "its other machines are gone")
            self._outlast(client, mine, groups[0], store)

    def _outlast(self, client: SyncPrefectClient, runs: Sequence[FlowRun], group: Group, store: Store) -> None:
        """Wait until flow runs are over. One that gives no sign of life, or that nobody wants any more, is ended."""
        seen: dict[UUID, tuple[object, float]] = {}
        while runs := [run for run in (client.read_flow_run(run.id) for run in runs) if not is_over(run)]:
            check_going_on(group.label)
            at_work = [record.model_dump() for record in all_work(store, group.stage, group.fingerprint)]
            for run in runs:
                sign = (state_of(run), [record for record in at_work if record["attempt"] == str(run.id)])
                _, since = seen.get(run.id, (None, 0.0))
                if seen.get(run.id, (None,))[0] != sign:
                    seen[run.id] = (sign, time.monotonic())
                elif time.monotonic() - since > self.pool.lost_after_s and state_of(run) != StateType.SCHEDULED:
                    client.set_flow_run_state(run.id, Crashed(message="no sign of life"), force=True)
                elif state_of(run) == StateType.SCHEDULED and not is_wanted(client, run):
                    client.set_flow_run_state(run.id, Cancelled(message="the run that it works for is over"))
            time.sleep(POLL_S)

    def _submit(self, client: SyncPrefectClient, group: Group, store: Store, parent: str) -> Child:
        before = [
            run for run in children_of(client, group.stage, group.fingerprint) if run.parameters.get("job") == job_key(group)
        ]
        mine = [run for run in before if run.parameters.get("parent") == parent]
        for run in mine:
            if not is_over(run):
                log.info("%s: flow run %s is at work already", group.label, run.name)
                return Child(group, run.id, run)
        job = write_job(store, group)
        deployment = f"sppo-stage/{group.stage}"
        try:
            started = run_deployment(
                deployment,
                parameters={"store": self.store_name, "job": job, "parent": parent},
                timeout=0,
                flow_run_name=f"{self.run_name} · {group.label}",
                tags=[CHILD, self.run_name, tag(group.stage, group.fingerprint)],
                idempotency_key=f"{parent}/{job}/{len(mine)}",  # a request sent twice makes one run
            )
        except ObjectNotFound as problem:
            raise RunError(
                f"the server has no deployment {deployment}, which hardware with a pool needs; expected those of prefect.yaml: "
                "`sppo serve` makes them, or `prefect deploy --all`"
            ) from problem
        run = cast(FlowRun, started)  # a coroutine only where an event loop runs, and tasks have none
        log.info("%s: flow run %s on pool %s", group.label, run.name, self.pool.name)
        return Child(group, run.id, run)

    def _wait(self, client: SyncPrefectClient, children: list[Child], store: Store, report: Report) -> list[WorkRecord]:
        told = answered = time.monotonic()
        last: Progress | None = None
        while True:
            check_going_on(children[0].group.label)
            try:
                with asked_once():
                    for child in children:
                        if not child.over:
                            self._look(client, child, store)
                answered = time.monotonic()
            except httpx.HTTPError as problem:
                if time.monotonic() - answered > OUTAGE_S:
                    raise LaunchError(f"the Prefect server did not answer for {OUTAGE_S:.0f} s: {problem}") from problem
            seen = [
                child.record.progress for child in children if child.record is not None and child.record.progress is not None
            ]
            if seen and (now := combine(seen)) != last:
                last = now
                report(now)
            if all(child.over for child in children):
                return [child.record for child in children if child.record is not None]
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                for child in children:
                    if child.run.state is not None and child.run.state.is_scheduled():
                        log.info("%s: waits for a free worker of pool %s", child.group.label, self.pool.name)
            time.sleep(POLL_S)

    def _look(self, client: SyncPrefectClient, child: Child, store: Store) -> None:
        """Bring a child up to date. Raises if it failed, is over without a result, or is silent."""
        group = child.group
        try:
            run = client.read_flow_run(child.id)
        except ObjectNotFound as problem:
            raise StoppedError(
                f"{group.label}: the server does not know flow run {child.run.name} any more, as after its database was lost; "
                "what was committed is kept: run again"
            ) from problem
        record = read_work(store, group.stage, group.fingerprint, group.number, group.of)
        if record is not None and record.attempt != str(child.id):
            record = None  # of an earlier attempt
        if record != child.record or state_of(run) != state_of(child.run):
            child.changed = time.monotonic()
        child.run, child.record = run, record
        if record is not None and record.state == "failed":
            _raise(record, group)
        if record is not None and record.state == "done":
            child.over = True
            return
        match state_of(run):
            case StateType.FAILED:
                message = run.state.message if run.state is not None else ""
                raise LaunchError(f"{group.label}: flow run {run.name} failed before its processes started: {message}")
            case StateType.CANCELLED | StateType.CANCELLING:
                raise StoppedError(f"{group.label}: flow run {run.name} was cancelled; what it committed is kept")
            case StateType.CRASHED:
                raise LaunchError(f"{group.label}: the worker of flow run {run.name} was lost; what it committed is kept")
            case StateType.COMPLETED:
                _check_gone(store, group, run)
                child.over = True
            case StateType.RUNNING | StateType.PENDING if time.monotonic() - child.changed > self.pool.lost_after_s:
                lost = f"no sign of life for {self.pool.lost_after_s} s"
                client.set_flow_run_state(child.id, Crashed(message=lost), force=True)
                raise LaunchError(f"{group.label}: flow run {run.name} gave {lost}; what it committed is kept")
            case _:
                return


def _check_gone(store: Store, group: Group, run: FlowRun) -> None:
    """A child that completed leaves a record, unless the artifact was committed meanwhile and took all records with it."""
    if store.backend.read(job_key(group)) is not None:
        raise LaunchError(f"{group.label}: flow run {run.name} completed and left no record of it; run again")


def _raise(record: WorkRecord, group: Group) -> NoReturn:
    if record.failure is None:
        raise LaunchError(f"{group.label} failed on {record.host} without a reason")
    raise errors.named(record.failure.error)(f"{record.failure.message} (on {record.host})")
