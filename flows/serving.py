"""One machine serves itself: a Prefect server, the pools `cpu` and `gpu`, all deployments and the workers, in the background.

All of it lives in `var/serve`: Prefect's home with its database, logs, records of processes, and `environment`, which a shell
reads to reach the server. Nothing here is started twice, and `stop` ends nothing that was not started here.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists
from rich.console import Console
from rich.text import Text

from flows import background
from flows.automations import SILENT, install
from flows.children import end_cancelling
from flows.environment import serving_settings, write_environment
from sppo.errors import HardwareError, LaunchError
from sppo.launch.devices import machine_devices

PROJECT = Path(__file__).resolve().parents[1]
TEMPLATES = {"cpu": "cpu-process.json", "gpu": "gpu-process.json"}
"""Of each pool."""
ORCHESTRATED = 8
"""Flow runs that the worker of the pool `cpu` has at a time; they wait more than they compute."""
RESUMES = 3
READY_S = 180.0
GRACE_S = 20.0
"""Between SIGTERM and SIGKILL."""
POLL_S = 0.3


@dataclass(frozen=True)
class Worker:
    """A worker to start."""

    pool: str
    limit: int
    """Flow runs at a time."""
    environment: Mapping[str, str]
    """Added to what all have."""


@dataclass(frozen=True)
class Served:
    """What serves now."""

    folder: Path
    url: str
    """Of the UI."""
    password: str
    store: str
    started: tuple[str, ...]
    """Names of the processes that this call started."""
    found: tuple[str, ...]
    """Names of those that ran already."""


def serve(root: Path, gpu_workers: int = 1, port: int | None = None, store: str | None = None) -> Served:
    """Start what does not run yet of server, pools, deployments and workers, in `root`/var/serve, and wait until all answer.

    Raises LaunchError if something does not start, or if what runs has another store or port; HardwareError if the machine's
    devices cannot be shared out evenly."""
    folder = _folder(root)
    workers = {"cpu-1": Worker("cpu", ORCHESTRATED, {})}
    workers |= {f"gpu-{number}": Worker("gpu", 1, share) for number, share in enumerate(device_shares(gpu_workers), 1)}
    with _alone(folder):
        found = tuple(background.alive(folder))
        settings = serving_settings(folder, root.resolve() / "var" / "store", found, port, store)
        write_environment(folder / "environment", settings)
        environment = {**os.environ, **settings}
        if "server" not in found:
            secret = {"PREFECT_SERVER_API_AUTH_STRING": settings["PREFECT_API_AUTH_STRING"]}
            background.start(folder, "server", _server_command(settings), {**environment, **secret})
        api = settings["PREFECT_API_URL"]
        _wait_for("server", folder, lambda: _ready(api))
        with SyncPrefectClient(api, auth_string=settings["PREFECT_API_AUTH_STRING"]) as client:
            _create_pools(client)
            _deploy(client, folder, environment)
            if "server" not in found:
                end_cancelling(client)
            if not client.read_automations_by_name(SILENT):  # else they are as a person wanted them: `sppo automations`
                install(client, notify=None, resumes=RESUMES)
            for name, worker in workers.items():
                if name not in found:
                    background.start(folder, name, _worker_command(name, worker), {**environment, **worker.environment})
            for name, worker in workers.items():
                _wait_for(name, folder, partial(_online, client, folder, worker.pool, name))
    started = tuple(name for name in ("server", *workers) if name not in found)
    return Served(folder, api.removesuffix("/api"), settings["PREFECT_API_AUTH_STRING"], settings["SPPO_STORE"], started, found)


def stop(root: Path) -> int:
    """End the workers with all that they run, then the server; how many processes that were. What was committed is kept."""
    folder = _folder(root)
    with _alone(folder):
        recorded = background.alive(folder)
        server = background.with_children(recorded.pop("server", None))
        ours = set(background.bearing_mark(folder)) | set(recorded.values()) | server
        background.end(recorded.values(), GRACE_S)  # a worker takes its flow runs with it; their missing heartbeats tell
        background.end(ours - server, GRACE_S)
        background.end(server, GRACE_S)
        background.alive(folder)  # removes the records
    return len(ours)


def show_served(console: Console, served: Served) -> None:
    """Address, password, logs, and what to type next."""
    environment = os.path.relpath(served.folder / "environment")
    for label, said in (
        ("found", ", ".join(served.found)),
        ("started", ", ".join(served.started) or "nothing: all of it ran"),
        ("UI", served.url),
        ("password", served.password),
        ("store", served.store),
        ("logs", str(served.folder / "logs")),
        ("stop", "make stop"),
        ("next", f". {environment} && prefect deployment run sppo-iteration/iter1 --watch"),
    ):
        if said:
            console.print(Text.assemble((f"{label:<9}", "bold"), said), soft_wrap=True)


def device_shares(workers: int) -> list[dict[str, str]]:
    """The environment of each `gpu` worker: one worker has all of this machine's devices, several have equal shares."""
    if workers < 1:
        raise HardwareError(f"{workers} gpu workers were asked for; expected at least one (GPU_WORKERS)")
    if workers == 1:
        return [{}]
    names = machine_devices("cuda" if shutil.which("nvidia-smi") else "cpu")
    if not names:
        return [{} for _ in range(workers)]
    each, left = divmod(len(names), workers)
    if each == 0 or left:
        raise HardwareError(
            f"{len(names)} devices ({','.join(names)}) cannot be shared out evenly among {workers} gpu workers; expected "
            f"GPU_WORKERS to divide {len(names)}; one worker runs one stage at a time on all of them"
        )
    return [{"SPPO_DEVICES": ",".join(names[index * each : (index + 1) * each])} for index in range(workers)]


def _folder(root: Path) -> Path:
    folder = (root / "var" / "serve").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While this lasts, no other `serve` or `stop` of the same folder does anything."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(f"another serve or stop is at work in {folder}; expected one at a time: wait for it") from None
        yield


def _server_command(settings: Mapping[str, str]) -> list[str]:
    port = str(httpx.URL(settings["PREFECT_API_URL"]).port)
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]


def _worker_command(name: str, worker: Worker) -> list[str]:
    options = ["--pool", worker.pool, "--type", "process", "--name", name, "--limit", str(worker.limit)]
    # a worker makes the pool that it misses, as on a server that lost its database
    options += ["--base-job-template", str(_template(worker.pool))]
    return [sys.executable, "-m", "prefect", "worker", "start", *options]


def _wait_for(name: str, folder: Path, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not answers():
        ended = name not in background.alive(folder)
        if ended or time.monotonic() > deadline:
            why = "ended" if ended else f"did not answer within {READY_S:.0f} s"
            raise LaunchError(
                f"{name} {why}; its last lines, of {folder}/logs/{name}.log:\n  {background.last_lines(folder, name)}"
            )
        time.sleep(POLL_S)


def _ready(api: str) -> bool:
    try:
        return httpx.get(f"{api}/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def _online(client: SyncPrefectClient, folder: Path, pool: str, name: str) -> bool:
    process = background.alive(folder).get(name)
    known = [worker for worker in client.read_workers_for_work_pool(pool) if worker.name == name]
    if process is None or not known or known[0].last_heartbeat_time is None:
        return False
    # A worker that was killed stays online for a while in the server's books: its successor has to have spoken.
    return known[0].status == WorkerStatus.ONLINE and known[0].last_heartbeat_time.timestamp() >= process.create_time()


def _create_pools(client: SyncPrefectClient) -> None:
    """Pools that are there stay as they are: a person may have changed them in the UI."""
    for name in TEMPLATES:
        template = json.loads(_template(name).read_text(encoding="utf-8"))
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def _template(pool: str) -> Path:
    return PROJECT / "infra" / "work-pools" / TEMPLATES[pool]


def _deploy(client: SyncPrefectClient, folder: Path, environment: Mapping[str, str]) -> None:
    """All of prefect.yaml, anew each time, for sources change. A schedule that a person has turned on stays on."""
    on = {(each.flow_id, each.name, slug) for each in client.read_deployments() for slug in _slugs(each, active=True)}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    background.log_file(folder, "deploy").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise LaunchError(
            f"the deployments of {PROJECT / 'prefect.yaml'} were refused; the last lines, of {folder}/logs/deploy.log:\n  "
            + background.last_lines(folder, "deploy")
        )
    for deployment in client.read_deployments():
        for slug, schedule in _slugs(deployment, active=False).items():
            if (deployment.flow_id, deployment.name, slug) in on:
                client.update_deployment_schedule(deployment.id, schedule, active=True)


def _slugs(deployment: DeploymentResponse, active: bool) -> dict[str, UUID]:
    """The ids of schedules by slug."""
    return {each.slug: each.id for each in deployment.schedules if each.slug and each.active == active}
