"""What the Prefect UI shows of a run, read back from a real server: tags, progress, pages. Its absence harms nothing."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import Artifact as Shown
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.iteration import sppo_iteration
from flows.preparation import prepare
from sppo.progress import Progress
from sppo.runs import IterationIndex
from sppo.store import Identity, Outcome, Step, Workspace
from tasks import showing
from tasks.report import report_run
from tasks.reporting import WatchedStore
from tasks.showing import artifact_key

RUN = "ui.test_1"
Arguments = dict[str, Any]


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def index(small: Arguments, server: str) -> IterationIndex:
    """Of a recipe of its own from training on: other tests' runs may have made what comes before."""
    return sppo_iteration(**own(small), run=RUN, iteration=1)


def own(small: Arguments) -> Arguments:
    return {**small, "overrides": (*small["overrides"], "training.eta=3")}


def runs_of(client: SyncPrefectClient, run: str) -> list[FlowRun]:
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[f"{run} · iteration 1"]))
    return client.read_flow_runs(flow_run_filter=wanted)


def shown_by(client: SyncPrefectClient, flow_run: FlowRun) -> list[Shown]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
    return client.read_artifacts(artifact_filter=wanted, limit=200, sort=None, offset=0)


@pytest.fixture(scope="module")
def shown(client: SyncPrefectClient, index: IterationIndex) -> dict[str, Shown]:
    """The newest artifact of each subject."""
    [flow_run] = runs_of(client, RUN)
    ending = artifact_key("", RUN).removeprefix("sppo-")
    found = sorted(shown_by(client, flow_run), key=lambda each: str(each.created))
    return {str(each.key).removeprefix("sppo-").removesuffix(ending): each for each in found}


def test_a_run_is_tagged_with_the_project_and_its_runs_name(client: SyncPrefectClient, index: IterationIndex) -> None:
    [flow_run] = runs_of(client, RUN)
    assert flow_run.tags == ["sppo", RUN]


def test_stages_have_a_page_and_heavy_ones_a_progress_that_ended_at_100(shown: dict[str, Shown]) -> None:
    heavy = {"train", "sample", "duel"}
    assert shown.keys() >= {*heavy, *(f"{stage}-progress" for stage in heavy), "evaluate", "iteration"}
    assert "evaluate-progress" not in shown
    assert {shown[f"{stage}-progress"].data for stage in heavy} == {100.0}
    description = str(shown["train-progress"].description)
    assert description.startswith(f"{RUN} · iteration 1 · train: 2 of 2 steps, done in ")  # 8 prompts in batches of 4


def test_a_stages_page_tells_counts_devices_files_and_logs(shown: dict[str, Shown], index: IterationIndex) -> None:
    page = str(shown["train"].data)
    reference = index.artifacts["train"].reference
    assert "| prompts | 8 |" in page
    assert f"| made by | {socket.gethostname()}: CPU |" in page
    assert reference.split("/")[1] in page
    assert "model.safetensors" in page
    assert "log metrics.jsonl" in page
    assert "](data:image/svg+xml;base64," in page
    assert shown["train"].description == f"{RUN} · iteration 1: {reference[: len('train/') + 8]}"
    assert shown["train"].task_run_id is not None


def test_the_iterations_page_links_to_the_pages_of_its_stages(shown: dict[str, Shown], index: IterationIndex) -> None:
    page = str(shown["iteration"].data)
    train = index.artifacts["train"].reference[: len("train/") + 8]
    assert f"[{train}](../artifact/{shown['train'].id})" in page
    assert f"[duel/{index.artifacts['duel.0.0'].reference[5:13]}](../artifact/" in page


def test_a_runs_table_is_a_page_of_that_run_whatever_the_flow_was_called_with(
    client: SyncPrefectClient, small: Arguments, index: IterationIndex
) -> None:
    made = own(small)
    setup = prepare(made["recipe"], made["hardware"], RUN, made["store"], 1, made["overrides"])

    @flow
    def nightly(run: str) -> None:
        report_run(setup)

    nightly("ui.{date}")
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key("report", RUN)]))
    [page] = client.read_artifacts(artifact_filter=wanted, limit=200, sort=None, offset=0)
    assert "| 0 (base) |" in str(page.data)


def test_what_is_committed_already_shows_nothing_again(
    client: SyncPrefectClient, small: Arguments, shown: dict[str, Shown]
) -> None:
    sppo_iteration(**own(small), run=RUN, iteration=1)
    again = max(runs_of(client, RUN), key=lambda each: str(each.created))
    assert shown_by(client, again) == []


def test_runs_whose_names_differ_in_dots_and_underscores_have_keys_of_their_own() -> None:
    assert artifact_key("train", "demo-2") == "sppo-train-demo-2"
    # the first six digits of sha256("demo.2") and of sha256("demo_2")
    assert artifact_key("train", "demo.2") == "sppo-train-demo-2-73d6fc"
    assert artifact_key("train", "demo_2") == "sppo-train-demo-2-e9b5a5"


def test_a_stage_goes_on_while_the_server_is_away_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(showing, "EVERY_S", 0.05)
    monkeypatch.setattr(showing, "RETRIES", 0)
    store = WatchedStore(str(tmp_path / "store"), tmp_path / "scratch")

    def work(workspace: Workspace) -> Outcome:
        for done in range(3):
            workspace.report(Progress(stage="train", done=done, total=2, unit="steps"))
        return Outcome("made")

    @task
    def train() -> str:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # taken, and nobody answers
            with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{nobody.getsockname()[1]}/api"}):
                return store.build(Step(Identity("rank", 1, {}, {}), work), lambda _: None).name

    @flow(flow_run_name="away")
    def away(run: str) -> str:
        return train()

    with caplog.at_level(logging.WARNING, "tasks.showing"):
        assert away("away").startswith("rank/")
    assert [record.getMessage() for record in caplog.records if record.name == "tasks.showing"] == [
        "the Prefect UI misses something: [Errno 111] Connection refused; the run goes on"
    ]
