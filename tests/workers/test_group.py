"""A group's life on a machine: its record in the store while it works, what it leaves when it is done or fails."""

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sppo.errors import LaunchError, PromptError
from sppo.launch import Group, run_group
from sppo.launch.group import Ranks
from sppo.launch.work import all_work, read_work
from sppo.progress import silent
from sppo.store import Identity, Outcome, Step, Store, Workspace

MODULE = "sppo_test_group_worker"
FINGERPRINT = "c" * 64
HEAD = (
    "import json, os, time\nfrom pydantic import BaseModel\nfrom sppo.errors import PromptError\n"
    "from sppo.launch import run_work\nfrom sppo.progress import Progress, ProgressFile\n"
    "class Told(BaseModel):\n    word: str\n"
    "def work(place, told):\n"
)
Make = Callable[..., Group]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A group of workers that run the given lines with `place` and `told`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(lines: str, words: tuple[str, ...] = ("a",), **changes: object) -> Group:
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        (tmp_path / f"{MODULE}.py").write_text(f"{HEAD}{body}run_work(Told, work)\n")
        values = {
            "stage": "generate", "fingerprint": FINGERPRINT, "number": 1, "of": 1, "module": MODULE,
            "works": tuple({"word": word} for word in words), "device": "cpu", "devices_each": 1, "threads": 2, "timeout_s": 60,
        }  # fmt: skip
        return Group.model_validate({**values, **changes})

    return make


def test_processes_are_told_their_place_and_their_work_and_leave_results_and_logs(group: Make, store: Store) -> None:
    lines = "print('hello', told.word)\nplace.result.write_text(json.dumps({'word': told.word, 'index': place.index}))"
    record = run_group(group(lines, ("a", "b")), store, "attempt-1", silent)
    assert record.state == "done"
    assert record.results == ({"word": "a", "index": 0}, {"word": "b", "index": 1})
    texts = [store.backend.read(entry.key("generate", FINGERPRINT)) for entry in record.logs]
    assert texts == [b"hello a\n", b"hello b\n"]
    assert read_work(store, "generate", FINGERPRINT, 1, 1) == record


def test_while_it_works_the_record_says_where_and_how_far(group: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo.launch.work.BEAT_S", 0.1)
    lines = (
        "ProgressFile(place.progress)(Progress(stage='generate', done=3, total=8, unit='prompts'))\n"
        "while not (place.scratch / 'go').exists(): time.sleep(0.05)"
    )
    store.scratch.mkdir(parents=True)
    seen = []

    def watch() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            record = read_work(store, "generate", FINGERPRINT, 1, 1)
            if record is not None and record.progress is not None:
                seen.append(record)
                break
            time.sleep(0.05)
        (store.scratch / "go").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_group(group(lines), store, "attempt-1", silent)
    watcher.join()
    [record] = seen
    assert (record.state, record.progress.done, record.progress.total) == ("running", 3, 8)
    assert record.host


def test_why_a_group_failed_is_in_its_record_in_the_workers_words(group: Make, store: Store) -> None:
    with pytest.raises(PromptError, match=r"^prompt 7 is empty$"):
        run_group(group("raise PromptError('prompt 7 is empty')"), store, "attempt-1", silent)
    [record] = all_work(store, "generate", FINGERPRINT)
    assert record.state == "failed"
    assert record.failure is not None
    assert (record.failure.error, record.failure.message) == ("PromptError", "prompt 7 is empty")


def test_records_go_away_when_the_artifact_is_committed(group: Make, store: Store) -> None:
    identity = Identity("generate", 1, {}, {})

    def run(workspace: Workspace) -> Outcome:
        made = group("pass", fingerprint=workspace.fingerprint)
        workspace.logs.extend(run_group(made, store, "attempt-1", silent).logs)
        assert len(all_work(store, "generate", workspace.fingerprint)) == 1
        return Outcome("made")

    artifact = store.build(Step(identity, run))
    assert all_work(store, "generate", identity.fingerprint) == []
    [log] = artifact.manifest.logs
    assert log.name.endswith("1-of-1-worker-0.log")


def test_ranks_on_two_machines_meet_where_the_first_says(group: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_NODE_ADDRESS", "127.0.0.1")
    meeting = f"generate/{FINGERPRINT}/work/{uuid.uuid4().hex}.meeting.json"
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    lines = f"place.result.write_text(json.dumps({{name: os.environ[name] for name in {names}}}))"
    machines = [
        group(lines, ("a", "b"), number=node + 1, of=2, ranks=Ranks(first=2 * node, size=4, meeting=meeting)) for node in (0, 1)
    ]
    found = {}

    def start(node: int) -> None:
        found[node] = run_group(machines[node], store, "attempt-1", silent).results

    second = threading.Thread(target=start, args=(1,))
    second.start()  # it waits
    start(0)
    second.join()
    ranks = [*found[0], *found[1]]
    assert [(rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"]) for rank in ranks] == [
        ("0", "0", "4"), ("1", "1", "4"), ("2", "0", "4"), ("3", "1", "4"),
    ]  # fmt: skip
    assert len({(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks}) == 1


def test_a_machine_that_waits_in_vain_says_for_what(group: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo.launch.group.MEETING_S", 0.5)
    waiting = group("pass", number=2, of=2, ranks=Ranks(first=1, size=2, meeting=f"generate/{FINGERPRINT}/work/x.meeting.json"))
    with pytest.raises(LaunchError, match=r"expected one worker of the pool free for each of train\.nodes"):
        run_group(waiting, store, "attempt-1", silent)
