"""What the Prefect UI shows of a run besides states and logs: tags, progress of heavy stages, a page for what each stage made
and one for each iteration. All of it is for the eye: a server that is away costs a line of the log, never a stage."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from sppo.errors import StoreError
from sppo.launch import WorkRecord
from sppo.launch.work import all_work
from sppo.progress import Progress
from sppo.runs import IterationIndex
from sppo.store import Artifact, Store
from sppo.summary import artifact_markdown, iteration_markdown, short_name
from tasks.reporting import progress_line

log = logging.getLogger(__name__)

T = TypeVar("T")
TAG = "sppo"
HEAVY = ("generate", "rank", "train", "sample", "duel", "score", "harness", "alpaca-answer", "alpaca-judge")
EVERY_S = 10.0
"""Between two updates of a progress artifact."""
ANSWER_S = 10.0
"""How long the server may take over one request."""
RETRIES = 2
"""Of a request to a busy server. The client's own number is made to outlast an outage, for which no stage should wait here."""
PAGE = 200
"""Most artifacts that the server gives at once."""
_away = threading.Event()


@dataclass(frozen=True)
class Place:
    """The flow run and task run that artifacts are shown with."""

    run: str
    flow_run: FlowRun
    task_run_id: UUID | None

    @property
    def title(self) -> str:
        """Such as `demo · iteration 2`."""
        return self.flow_run.name

    def create(self, subject: str, kind: str, content: object, description: str) -> UUID | None:
        """A new artifact, the newest under its key; None if the server is away."""
        asked = ArtifactCreate(
            key=artifact_key(subject, self.run),
            type=kind,
            data=content,
            description=description,
            flow_run_id=self.flow_run.id,
            task_run_id=self.task_run_id,
        )
        return tell(lambda client: client.create_artifact(asked).id)


def here(run: str | None = None) -> Place | None:
    """Where this code runs; None outside a flow run. Without a name, the run is the one that the flow was called with."""
    context, task = FlowRunContext.get(), TaskRunContext.get()
    if context is None or context.flow_run is None:
        return None
    named = run or (context.parameters or {}).get("run")
    return Place(str(named), context.flow_run, task.task_run.id if task else None) if named else None


def artifact_key(subject: str, run: str) -> str:
    """`sppo-<subject>-<run>`. A key has no dots or underscores: a run's name that has some is told from others by a digest."""
    plain = run.replace(".", "-").replace("_", "-")
    if plain != run:
        plain += f"-{hashlib.sha256(run.encode()).hexdigest()[:6]}"
    return f"sppo-{subject}-{plain}"


def tell(ask: Callable[[SyncPrefectClient], T]) -> T | None:
    """What the server answers; None, and one line of the log, while it is away."""
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}),
            get_client(httpx_settings={"timeout": ANSWER_S}, sync_client=True) as client,
        ):
            answer = ask(client)
    except (httpx.HTTPError, ObjectNotFound) as problem:  # not found: someone deleted it in the UI
        if not _away.is_set():
            log.warning("the Prefect UI misses something: %s; the run goes on", str(problem) or type(problem).__name__)
        _away.set()
        return None
    _away.clear()
    return answer


def tag_run(run: str) -> None:
    """Give a flow run that stands for itself the tags `sppo` and its run's name, beside those of its deployment."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.parent_task_run_id is not None:
        return
    shown = context.flow_run
    tags = list(dict.fromkeys([*shown.tags, TAG, run]))
    if tags != shown.tags:
        tell(lambda client: client.update_flow_run(shown.id, tags=tags))


class Effort:
    """The making of one or more artifacts of a store, as the UI shows it. What is committed already shows nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.place = here()
        self.show: Callable[[Progress], None] = lambda progress: None
        self._made: set[str] = set()
        self._work: list[WorkRecord] = []

    @contextmanager
    def under_way(self, stage: str) -> Iterator[None]:
        """While this lasts, a progress artifact follows a heavy stage."""
        if self.place is None or stage not in HEAVY:
            yield
            return
        shown = ProgressArtifact(self.place, stage)
        self.show = shown.show
        with shown.kept_up():
            yield

    def note(self, stage: str, fingerprint: str) -> None:
        """That this artifact is about to be committed: afterwards nobody knows who worked on it."""
        self._made.add(fingerprint)
        if self.place is None or stage not in HEAVY:
            return
        try:
            self._work += all_work(self.store, stage, fingerprint)
        except StoreError as problem:
            log.warning("%s: the Prefect UI will not say who made it: %s", stage, problem)

    def end(self, artifacts: Sequence[Artifact]) -> None:
        """A page about those that were made now."""
        made = [artifact for artifact in artifacts if artifact.manifest.fingerprint in self._made]
        if self.place is None or not made:
            return
        try:
            page = "\n".join(artifact_markdown(artifact, self.store.url, self._work) for artifact in made)
        except StoreError as problem:  # whoever needs these bytes will refuse them
            log.warning("%s: no page in the Prefect UI: %s", made[0].name, problem)
            return
        names = ", ".join(artifact.name for artifact in made)
        self.place.create(made[0].manifest.stage, "markdown", page, f"{self.place.title}: {names}")


class ProgressArtifact:
    """A heavy stage's progress in per cent, kept up from a thread of its own: a slow server holds up no one who watches."""

    def __init__(self, place: Place, stage: str) -> None:
        self.place = place
        self.stage = stage
        self._id: UUID | None = None
        self._latest: Progress | None = None
        self._first: tuple[float, int] | None = None
        self._told = ""
        self._over = threading.Event()

    def show(self, progress: Progress) -> None:
        """Show this at the next update."""
        if progress.unit:
            self._first = self._first or (time.monotonic(), progress.done)
            self._latest = progress

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        """The artifact from now on; at the end it is complete, or says that the stage was not done."""
        began = time.monotonic()
        thread = threading.Thread(target=copy_context().run, args=(self._keep_up,), name="progress-artifact", daemon=True)
        thread.start()
        ending = "not done"
        try:
            yield
            ending = f"done in {time.monotonic() - began:.0f} s"
        finally:
            self._over.set()
            thread.join()
            self._write(ending)

    def _keep_up(self) -> None:
        self._write()
        while not self._over.wait(EVERY_S):
            self._write()

    def _write(self, ending: str = "") -> None:
        share, description = self._state(ending)
        if self._id is None:
            self._id = self.place.create(f"{self.stage}-progress", "progress", share, description)
        elif description != self._told:
            changed = ArtifactUpdate(data=share, description=description)
            artifact = self._id
            tell(lambda client: client.update_artifact(artifact, changed))
        self._told = description

    def _state(self, ending: str) -> tuple[float, str]:
        """Per cent, and a line for people."""
        latest, first = self._latest, self._first
        if latest is None or first is None:
            return (100.0 if ending.startswith("done") else 0.0), f"{self.place.title} · {self.stage}: {ending or 'starting'}"
        seconds = time.monotonic() - first[0]
        rate = (latest.done - first[1]) / seconds if seconds > 0 else 0.0
        share = 100.0 * latest.done / max(1, latest.total)
        if not ending:
            return share, f"{self.place.title} · {progress_line(latest, rate)}"
        done = f"{latest.total if ending.startswith('done') else latest.done} of {latest.total} {latest.unit}"
        return (100.0 if ending.startswith("done") else share), f"{self.place.title} · {self.stage}: {done}, {ending}"


def show_iteration(store: Store, index: IterationIndex) -> None:
    """A page about a finished iteration, once for each evaluation of it."""
    place = here()
    if place is None:
        return
    description = f"{place.title}: {short_name(index.artifacts['evaluate'].reference)}"
    if (there := _pages(index.run, ["iteration"])) is None or description in there:
        return
    stages = dict.fromkeys(entry.reference.partition("/")[0] for entry in index.artifacts.values())
    links = {
        entry.reference: f"../artifact/{page}"
        for told, page in (_pages(index.run, list(stages)) or {}).items()
        for entry in index.artifacts.values()
        if short_name(entry.reference) in told
    }
    place.create("iteration", "markdown", iteration_markdown(store, index, links), description)


def _pages(run: str, subjects: Sequence[str]) -> dict[str, UUID] | None:
    """The newest page of each description that the server has of a run; None if the server is away."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(subject, run) for subject in subjects]))
    found = tell(
        lambda client: client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=PAGE, offset=0)
    )
    return None if found is None else {page.description or "": page.id for page in reversed(found)}
