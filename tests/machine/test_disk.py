"""A disk that is full or read-only: nothing half-written is believed, and work goes on when there is room."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sppo.errors import StoreError
from sppo.launch import Worker, run_workers
from sppo.progress import silent
from sppo.recipe import Recipe
from sppo.runs import start
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

ROOT = Path(__file__).resolve().parents[2]
LARGE = os.urandom(3 << 20)
Grow = Callable[[Path, int], None]
Disk = Callable[[str, int], Path]


def step(made: list[str]) -> Step:
    """Two chunks, committed as parts as they are made, then the artifact."""

    def run(workspace: Workspace) -> Outcome:
        for name in ("chunk-00000", "chunk-00001"):
            if workspace.part(name) is None:
                made.append(name)
                (workspace.folder / f"{name}.bin").write_bytes(LARGE + name.encode())
                workspace.commit_part(name, [workspace.folder / f"{name}.bin"])
            record = workspace.part(name)
            assert record is not None
            workspace.adopt_part(record)
        return Outcome("two chunks", {"chunks": 2})

    return Step(Identity("generate", 1, {"chunks": 2}, {}), run)


def content(artifact: Artifact) -> list[bytes]:
    return [artifact.path(name).read_bytes()[len(LARGE) :] for name in artifact.file_names()]


def test_a_store_without_room_says_so_keeps_what_is_whole_and_goes_on_when_there_is_room(
    small_disk: Disk, grow: Grow, tmp_path: Path
) -> None:
    disk = small_disk("disk", 5 << 10)  # 5 MiB: one chunk of 3
    store, made = Store(str(disk / "store"), tmp_path / "scratch"), list[str]()
    with pytest.raises(
        StoreError, match=r"cannot upload .*chunk-00001.bin to the store at .*: No space left on device"
    ) as caught:
        store.build(step(made))
    assert "make room there, then run again: what is committed is kept" in str(caught.value)
    assert store.workspace("generate", step([]).identity.fingerprint).parts() == ["chunk-00000"]
    assert store.find("generate", step([]).identity.fingerprint) is None
    assert not [path for path in disk.rglob("*") if path.name.startswith(".writing-")]  # half a file takes no room either

    grow(disk, 32 << 10)
    assert content(store.build(step(made))) == [b"chunk-00000", b"chunk-00001"]
    assert made == ["chunk-00000", "chunk-00001", "chunk-00001"]  # the first chunk was not drawn again


def test_a_full_store_is_said_before_a_run_begins(small_disk: Disk, tmp_path: Path) -> None:
    disk = small_disk("disk", 64)
    with pytest.raises(OSError, match="No space left"):
        (disk / "filling").write_bytes(bytes(1 << 20))
    with pytest.raises(StoreError, match="No space left on device; make room there"):
        Store(str(disk / "store"), tmp_path / "scratch").check_writable()


def test_scratch_without_room_is_named_and_goes_on_when_there_is_room(small_disk: Disk, grow: Grow, tmp_path: Path) -> None:
    disk = small_disk("scratch", 2 << 10)
    store, made = Store(str(tmp_path / "store"), disk), list[str]()
    with pytest.raises(StoreError) as caught:
        store.build(step(made))
    assert str(caught.value).startswith("cannot write to scratch at ")
    assert "No space left on device; make room there, or name another folder in SPPO_SCRATCH" in str(caught.value)
    assert store.workspace("generate", step([]).identity.fingerprint).parts() == []
    assert not list(disk.glob("work/*"))
    grow(disk, 32 << 10)
    assert content(store.build(step(made))) == [b"chunk-00000", b"chunk-00001"]


def test_a_copy_that_did_not_fit_is_not_taken_for_whole(s3_url: str, small_disk: Disk, grow: Grow, tmp_path: Path) -> None:
    Store(s3_url, tmp_path / "elsewhere").build(step([]))
    disk = small_disk("scratch", 2 << 10)
    store = Store(s3_url, disk)
    artifact = store.build(step([]))  # which is committed: sizes are asked for, nothing is fetched
    with pytest.raises(StoreError, match=r"pace.*; make room there, or set SPPO_SCRATCH to a folder with more"):
        content(artifact)
    assert not [path for path in disk.glob("objects/*") if path.is_file()]
    grow(disk, 32 << 10)
    assert content(artifact) == [b"chunk-00000", b"chunk-00001"]


@pytest.mark.parametrize("where", ["elsewhere", "on that disk"])
def test_a_worker_whose_disk_is_full_says_what_to_do(
    where: str, small_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("scratch", 64)
    told = (tmp_path if where == "elsewhere" else disk) / "run.json"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "generate.py").write_text(
        "from sppo.launch import worker_main\n"
        f"def work(config): open({str(disk / 'chunk.parquet')!r}, 'wb').write(bytes(1 << 20))\nworker_main(work)\n"
    )
    worker = Worker("generate", told, tmp_path / "log", tmp_path / "progress", label="generate")
    with pytest.raises(StoreError, match="No space left on device; make room there, or name another folder in SPPO_SCRATCH"):
        run_workers([worker], 60, silent, lambda seen: seen[0])


def test_a_read_only_store_is_refused_before_a_run_begins_and_can_be_looked_at(
    read_only: Callable[[Path], Path], tmp_path: Path, tiny: Recipe
) -> None:
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    built = store.build(step([]))
    start(store, "demo", tiny, lambda recipe: recipe)
    place = read_only(tmp_path / "store")
    locked = Store(str(place), tmp_path / "scratch")
    with pytest.raises(StoreError, match="Read-only file system; choose a folder you may write to"):
        locked.check_writable()
    assert content(locked.build(step([]))) == content(built)
    commands = {
        ("run", "tiny", "--run", "demo"): (2, "Read-only file system; choose a folder you may write to"),
        ("verify", "demo"): (0, ""),
        ("status", "demo"): (0, ""),
    }
    for command, (status, words) in commands.items():
        arguments = [sys.executable, "-m", "flows.command_line", *command, "--store", str(place)]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
        assert words in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SPPO_SOAK"), reason="a minute, most of it Prefect's: make soak")
def test_a_disk_that_fills_while_a_command_writes_ends_in_one_message(small_disk: Disk, tmp_path: Path) -> None:
    disk = small_disk("scratch", 16)
    environment = {**os.environ, "SPPO_SCRATCH": str(disk)}
    with pytest.raises(OSError, match="No space left"):
        (disk / "filling").write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "flows.command_line", "run", "tiny", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "sppo: cannot write to" in done.stderr
    assert "No space left on device; make room there, or name another folder in SPPO_SCRATCH" in done.stderr
