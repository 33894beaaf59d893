"""A checkpoint on its way to the store while training goes on: committed when it has arrived, and not before."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sppo.errors import StoreError
from sppo.store import FileEntry, Store, Workspace
from sppo.train.checkpoints import Saver


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    """The only rank of a process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class SlowStore:
    """A workspace whose uploads wait until they may go on."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.may_go_on = threading.Event()
        self.problem: Exception | None = None

    def upload_all(self, paths: list[Path]) -> list[FileEntry]:
        assert self.may_go_on.wait(60)
        if self.problem is not None:
            raise self.problem
        return self.workspace.upload_all(paths)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workspace, name)


@pytest.fixture
def slow(store: Store) -> SlowStore:
    return SlowStore(store.workspace("train", "0" * 64))


@pytest.fixture
def saver(slow: SlowStore, tmp_path: Path) -> Saver:
    """Its engine writes a file of a byte."""

    def save_checkpoint(folder: str, tag: str, **_: object) -> None:
        (Path(folder) / tag / "state.pt").write_bytes(b"x")

    (tmp_path / "metrics.jsonl").write_text("{}\n")
    rank = SimpleNamespace(
        run=SimpleNamespace(layout="ranks1-zero1", training=SimpleNamespace(other_layout="iteration_start")),
        engine=SimpleNamespace(save_checkpoint=save_checkpoint),
        place=SimpleNamespace(index=0),
        workspace=slow,
        file=lambda name: tmp_path / name,
        is_first=True,
        world_size=1,
        device="cpu",
    )
    return Saver(rank, tmp_path, tmp_path / "metrics.jsonl", restarted=False)  # type: ignore[arg-type]


def test_steps_go_on_while_a_checkpoint_is_uploaded(slow: SlowStore, saver: Saver, tmp_path: Path) -> None:
    saver.save(2)
    saver.advance()
    assert slow.parts() == []
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n{}\n")  # of a later step, and no part of this checkpoint
    slow.may_go_on.set()
    saver.finish()
    assert slow.parts() == ["checkpoint-000002-ranks1-zero1"]
    record = slow.part("checkpoint-000002-ranks1-zero1")
    assert [entry.name for entry in record.files] == ["metrics.jsonl", "state.pt"]
    assert slow.part_path(record.files[0]).read_text() == "{}\n"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_one_checkpoint_is_under_way_at_a_time_and_the_newest_stays(slow: SlowStore, saver: Saver) -> None:
    slow.may_go_on.set()
    saver.save(2)
    saver.save(4)
    assert slow.parts() == ["checkpoint-000002-ranks1-zero1"]
    saver.finish()
    assert slow.parts() == ["checkpoint-000004-ranks1-zero1"]
    saver.finish()
    saver.advance()


def test_an_upload_that_failed_ends_the_training_with_its_reason(slow: SlowStore, saver: Saver) -> None:
    saver.save(2)
    slow.problem = StoreError("no space is left in the bucket")
    slow.may_go_on.set()
    with pytest.raises(StoreError, match="no space is left"):
        saver.finish()
    assert slow.parts() == []
