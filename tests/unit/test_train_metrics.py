"""The metrics line: worked out by hand, written, and handed to real trackers that may fail without harm."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from sppo.secrecy import without_secrets
from sppo.train import metrics as module
from sppo.train.metrics import CLOCKED, About, Metrics, Pace, event_files, note, open_metrics
from sppo.train.trackers import asked_trackers

ABOUT = About("tiny-iteration-1", "ab" * 32, {"eta": 10})
VARIABLES = ("SPPO_TENSORBOARD", "WANDB_PROJECT", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def line(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "tokens_per_s": 10.0}


def write(path: Path, first: int, last: int) -> None:
    """Steps of an attempt; one that does not begin at 1 finds those before it in the file, as a resume does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, first)))
    with open_metrics(path, ABOUT) as metrics:
        for step in range(first, last + 1):
            metrics.write(line(step))


def test_each_step_is_a_line_and_a_resume_goes_on_below(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", 3, 5)
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with open_metrics(tmp_path / "metrics.jsonl", ABOUT) as metrics:
        metrics.write(line(1))
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == line(1)


def test_figures_of_a_step_are_worked_out_by_hand() -> None:
    pace = Pace(steps=10, devices=8, peak=1e12, device="cpu")
    pace.figures(1, seconds=50.0, tokens=1000, responses=20, pairs=10, flops=1e12)  # compiles; does not count for the rest
    found = pace.figures(2, seconds=2.0, tokens=1000, responses=20, pairs=10, flops=4e12)
    assert (found["tokens_per_s"], found["responses_per_s"], found["pairs_per_s"]) == (500, 10, 5)
    assert found["useful_mfu"] == 4e12 / (2 * 8 * 1e12)
    assert found["seconds_left"] == 8 * 2.0
    assert 0.01 < found["memory_gib"] < 100
    assert set(found) == CLOCKED


def test_without_a_known_peak_there_is_no_mfu() -> None:
    found = Pace(steps=2, devices=1, peak=None, device="cpu").figures(1, 1.0, 1, 1, 1, 1.0)
    assert "useful_mfu" not in found


def test_the_note_says_what_a_person_looks_for() -> None:
    figures = {"loss": 0.125, "tokens_per_s": 41_230, "pairs_per_s": 52.6, "useful_mfu": 0.412, "memory_gib": 63.2}
    assert (
        note({**figures, "seconds_left": 720}) == "loss 0.1250, 41.2k tokens/s, 52.6 pairs/s, MFU 41 %, 63.2 GiB, 12 min left"
    )


class Failing:
    """A tracker whose server is gone from the second line on."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, line: Mapping[str, float]) -> None:
        self.lines += 1
        if self.lines > 1:
            raise ConnectionError("no route to http://me:hunter22@example.org/")

    def close(self, well: bool) -> None:
        raise AssertionError("a tracker that failed is not told anything more")


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, {"Elsewhere": Failing}) as metrics:
        for step in range(1, 50):
            metrics.write(line(step))
    assert len(path.read_text().splitlines()) == 49
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "Elsewhere is told no more: ConnectionError: no route to http://***@example.org/" in record.getMessage()


def test_a_tracker_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSING_S", 0.1)
    never = threading.Event()

    class Hanging(Failing):
        def write(self, line: Mapping[str, float]) -> None:
            never.wait(30)

    with Metrics(tmp_path / "metrics.jsonl", {"Elsewhere": Hanging}) as metrics:
        for step in range(1, 50):
            metrics.write(line(step))
    never.set()
    assert "it has not answered for" in caplog.text


def test_what_fails_in_the_artifacts_own_file_is_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        open_metrics(tmp_path / "nowhere" / "metrics.jsonl", ABOUT)


def test_secrets_of_the_environment_stand_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert without_secrets("key 0123456789abcdef at https://u:p@host/x") == "key *** at https://***@host/x"


def test_a_tracker_that_is_asked_for_and_not_installed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sppo.train.trackers._installed", lambda package: False)
    for name in VARIABLES:
        monkeypatch.setenv(name, "x")
    assert asked_trackers(ABOUT, tmp_path) == {}
    assert "WANDB_PROJECT is set and wandb is not installed here: pip install wandb" in caplog.text
    assert len(caplog.records) == 3


def scalars(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars("train/loss")]


def test_tensorboard_lies_beside_the_metrics_and_holds_the_steps_before_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path / "metrics.jsonl", 3, 4)
    assert [file.parent.name for file in event_files(tmp_path / "metrics.jsonl")] == ["tensorboard"]
    assert [step for step, _ in scalars(tmp_path / "tensorboard")] == [1, 2, 3, 4]
    assert [loss for _, loss in scalars(tmp_path / "tensorboard")] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_tensorboard_in_a_place_of_ones_own_shows_each_step_once_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("SPPO_TENSORBOARD", str(tmp_path / "board"))
    write(tmp_path / "first" / "metrics.jsonl", 1, 6)  # and its checkpoint was at step 4
    write(tmp_path / "second" / "metrics.jsonl", 5, 8)
    assert [step for step, _ in scalars(tmp_path / "board" / "tiny-iteration-1-abababab")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_tensorboard_that_cannot_write_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPPO_TENSORBOARD", str(tmp_path / "file"))
    write(tmp_path / "a" / "metrics.jsonl", 1, 3)
    assert "TensorBoard is told no more: " in caplog.text


def test_wandb_offline_keeps_one_run_through_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_PROJECT", "sppo"), ("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    write(tmp_path / "a" / "metrics.jsonl", 1, 4)
    write(tmp_path / "b" / "metrics.jsonl", 3, 6)
    runs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {run.name for run in runs} == {"run-abababababababab.wandb"}
    assert [recorded_steps(run) for run in runs] == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]


def recorded_steps(path: Path) -> list[int]:
    """Steps in an offline run's file: 7 bytes of header, then records as LevelDB logs them, each of them short here."""
    from wandb.proto import wandb_internal_pb2

    content, place, steps = path.read_bytes(), 7, []
    while place + 7 <= len(content):
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        assert kind == 1, "expected whole records"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[place + 7 : place + 7 + length])
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
        place += 7 + length
    return steps


def test_mlflow_goes_on_with_the_same_run_and_sends_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    write(tmp_path / "a" / "metrics.jsonl", 1, 4)
    write(tmp_path / "b" / "metrics.jsonl", 3, 6)
    [losses] = tmp_path.glob("store/*/*/metrics/loss")
    assert [int(text.split()[2]) for text in losses.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert "status: 3" in (losses.parents[1] / "meta.yaml").read_text()  # finished
