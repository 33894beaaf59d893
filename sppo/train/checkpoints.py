"""Saving in the middle of a training, and continuing from there bit for bit.

A checkpoint is a part of the artifact in the making, `checkpoint-<step>-<layout>`: DeepSpeed's own files of all ranks and the
metrics so far. It continues only under the layout (ranks, ZeRO stage) that wrote it. DeepSpeed's files are pickles: they are
opened only after their sha256 has matched the part's record.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from sppo.errors import TrainError
from sppo.launch import Place
from sppo.store import FileEntry, Workspace
from sppo.train.run import TrainRun

log = logging.getLogger(__name__)

NAME = re.compile(r"^checkpoint-(\d{6,})-(ranks\d+-zero\d)$")
METRICS = "metrics.jsonl"


def checkpoint_name(step: int, layout: str) -> str:
    """Name of the part after a number of steps."""
    return f"checkpoint-{step:06d}-{layout}"


def step_of(name: str) -> int:
    """Steps done at a checkpoint. Raises TrainError for another kind of part."""
    match = NAME.match(name)
    if match is None:
        raise TrainError(f"{name!r} is not a training checkpoint; expected such as checkpoint-000050-ranks8-zero3")
    return int(match[1])


def checkpoints_of(workspace: Workspace) -> list[str]:
    """Names of the committed checkpoints, earliest first."""
    return sorted((name for name in workspace.parts() if NAME.match(name)), key=step_of)


def latest(workspace: Workspace, layout: str) -> str | None:
    """The newest checkpoint that this layout can continue from; None to start from the iteration's start.

    Progress under another layout is named in a warning: DeepSpeed cannot share it out anew."""
    names = checkpoints_of(workspace)
    usable = [name for name in names if name.endswith(f"-{layout}")]
    if usable:
        return usable[-1]
    if names:
        found = NAME.match(names[-1])
        log.warning(
            "train: %s was written under the layout %s and cannot continue under %s; training restarts from the iteration's "
            "start (to continue instead, use hardware of the first layout)",
            names[-1],
            found[2] if found else "?",
            layout,
        )
    return None


def save(engine: Any, place: Place, run: TrainRun, workspace: Workspace, step: int, metrics: Path) -> None:
    """Commit a checkpoint, then drop the older ones. All ranks call this together; each machine uploads what it wrote."""
    from torch import distributed

    folder = place.folder / "checkpoints"
    name = checkpoint_name(step, run.layout)
    (folder / name).mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=name, save_latest=False)
    distributed.barrier()  # every rank's files are complete
    first = distributed.get_rank() == 0
    if first:
        shutil.copyfile(metrics, folder / name / METRICS)
    mine = workspace.upload_all(sorted((folder / name).iterdir())) if place.index == 0 else []
    gathered: list[list[FileEntry]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, mine)
    if first:
        entries = {entry.name: entry for each in gathered for entry in each}
        workspace.commit_entries(name, [entries[key] for key in sorted(entries)], {"steps": step})
        drop(workspace, name)
        log.info("checkpoint %s: %d files", name, len(entries))
    distributed.barrier()  # nobody writes the next one into a folder that is going away
    if place.index == 0:
        shutil.rmtree(folder)
    distributed.barrier()


def drop(workspace: Workspace, newest: str | None = None) -> None:
    """Remove all checkpoints but the newest."""
    record = None if newest is None else workspace.part(newest)
    for name in checkpoints_of(workspace):
        if name != newest:
            workspace.drop_part(name, keep=() if record is None else record.files)


def restore(engine: Any, place: Place, run: TrainRun, workspace: Workspace, metrics: Path) -> int:
    """Continue from `run.resume_from`, if there is one: the number of steps already done. All ranks call this together.

    Raises CorruptArtifactError for a file whose sha256 differs, TrainError if DeepSpeed does not take the checkpoint."""
    from torch import distributed

    name = run.resume_from
    if name is None:
        return 0
    folder = place.folder / "resumed"
    if place.index == 0:
        record = workspace.part(name)
        if record is None:
            raise TrainError(f"the checkpoint {name} is gone from the store; run again")
        (folder / name).mkdir(parents=True)
        for entry, path in zip(record.files, workspace.part_paths(record), strict=True):
            (folder / name / entry.name).symlink_to(path.resolve())
        shutil.copyfile(folder / name / METRICS, metrics)
    distributed.barrier()
    loaded, _ = engine.load_checkpoint(str(folder), tag=name)
    if loaded is None:
        raise TrainError(f"DeepSpeed found no state in the checkpoint {name}; delete that part and run again")
    if engine.global_steps != step_of(name):
        raise TrainError(f"the checkpoint {name} holds {engine.global_steps} steps; delete that part and run again")
    return step_of(name)
