"""Saving in the middle of a training, and continuing from there bit for bit.

A checkpoint is a part of the artifact in the making, `checkpoint-<step>-<layout>`: DeepSpeed's own files of all ranks and the
metrics so far. It continues only under the layout (ranks, ZeRO stage) that wrote it; where the recipe asks for that, it also
holds the weights alone, from which another layout goes on. It is uploaded while training goes on. DeepSpeed's files are
pickles: they are opened only after their sha256 has matched the part's record.
"""

import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sppo.errors import TrainError
from sppo.launch import Place
from sppo.store import FileEntry, Workspace
from sppo.train import adapters, weights
from sppo.train.rank import Rank
from sppo.train.run import TrainRun

log = logging.getLogger(__name__)

NAME = re.compile(r"^checkpoint-(\d{6,})-(ranks\d+-zero\d)$")
METRICS = "metrics.jsonl"
RESTARTED = "optimizer_restarted"


def checkpoint_name(step: int, layout: str) -> str:
    """Name of the part after a number of steps."""
    return f"checkpoint-{step:06d}-{layout}"


def step_of(name: str) -> int:
    """Steps done at a checkpoint. Raises TrainError for another kind of part."""
    return int(_match(name)[1])


def layout_of(name: str) -> str:
    """The layout that wrote a checkpoint. Raises TrainError for another kind of part."""
    return _match(name)[2]


def _match(name: str) -> re.Match[str]:
    match = NAME.match(name)
    if match is None:
        raise TrainError(f"{name!r} is not a training checkpoint; expected such as checkpoint-000050-ranks8-zero3")
    return match


def checkpoints_of(workspace: Workspace) -> list[str]:
    """Names of the committed checkpoints, earliest first."""
    return sorted((name for name in workspace.parts() if NAME.match(name)), key=step_of)


def latest(workspace: Workspace, layout: str, other_layout: str) -> str | None:
    """The newest checkpoint that this layout can continue from; else, if `other_layout` is `last_weights`, the newest of any;
    None to start from the iteration's start.

    Progress under another layout is named in a warning: DeepSpeed cannot share its optimizer's states out anew."""
    names = checkpoints_of(workspace)
    usable = [name for name in names if layout_of(name) == layout]
    if usable or not names:
        return usable[-1] if usable else None
    newest = names[-1]
    goes_on = other_layout == "last_weights"
    log.warning(
        "train: %s was written under the layout %s and cannot continue under %s; training %s, as training.other_layout %s "
        "says (to continue exactly, use hardware of the first layout)",
        newest,
        layout_of(newest),
        layout,
        f"goes on from its weights at step {step_of(newest)} with a new optimizer"
        if goes_on
        else "restarts from the iteration's start",
        other_layout,
    )
    return newest if goes_on else None


@dataclass
class Saver:
    """Takes a rank's checkpoints: one at a time is under way to the store while the next steps run. All ranks make the same
    calls."""

    rank: Rank
    policy: Path
    """Folder of pi_t."""
    metrics: Path
    restarted: bool
    """The optimizer began anew in the middle of this training, under another layout."""
    _name: str | None = None
    _upload: "Future[list[FileEntry]] | None" = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    def save(self, step: int) -> None:
        """Write a checkpoint and start its upload; the one before is committed first."""
        from torch import distributed

        self.finish()
        rank = self.rank
        self._name = checkpoint_name(step, rank.run.layout)
        folder = self._folder(self._name)
        folder.mkdir(parents=True, exist_ok=True)
        state = {RESTARTED: self.restarted}
        rank.engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state=state, save_latest=False)
        if rank.run.training.other_layout == "last_weights":
            self._write_weights(folder)
        if rank.is_first:
            shutil.copyfile(self.metrics, folder / METRICS)
        distributed.barrier()  # every rank's files are complete
        if rank.place.index == 0:
            self._upload = self._thread.submit(rank.workspace.upload_all, sorted(folder.iterdir()))

    def advance(self) -> None:
        """Commit what is under way if all machines have uploaded their files; never waits for them."""
        import torch

        if self._name is None:
            return
        waiting = torch.tensor(float(self._upload is not None and not self._upload.done()), device=self.rank.device)
        torch.distributed.all_reduce(waiting)
        if waiting.item() == 0:
            self.finish()

    def finish(self) -> None:
        """Wait for what is under way, commit it, then drop the older ones. Raises what the upload raised."""
        from torch import distributed

        if self._name is None:
            return
        rank, name = self.rank, self._name
        if self._upload is not None and not self._upload.done():
            log.info("checkpoint %s is still on its way to the store; training waits", name)
        mine = [] if self._upload is None else self._upload.result()
        gathered: list[list[FileEntry]] = [[] for _ in range(rank.world_size)]
        distributed.all_gather_object(gathered, mine)
        if rank.is_first:
            entries = {entry.name: entry for each in gathered for entry in each}
            rank.workspace.commit_entries(name, [entries[key] for key in sorted(entries)], {"steps": step_of(name)})
            drop(rank.workspace, name)
            log.info("checkpoint %s: %d files", name, len(entries))
        if rank.place.index == 0:
            shutil.rmtree(self._folder(name))
        self._name = self._upload = None

    def _write_weights(self, folder: Path) -> None:
        if self.rank.run.training.adapter.kind == "none":
            weights.write_policy(self.rank.policy, self.policy, folder, self.rank.is_first)
        else:
            adapters.write_adapters(self.rank.policy, folder, self.rank.is_first)

    def _folder(self, name: str) -> Path:
        return self.rank.file("checkpoints") / name


def drop(workspace: Workspace, kept: str) -> None:
    """Remove the checkpoints that the part `kept`, a checkpoint or the result, makes needless, and no file that it shares with
    them.

    One with more steps than `kept` stays: it is of a training that took this one over, or of another layout."""
    record = workspace.part(kept)
    limit = step_of(kept) if NAME.match(kept) else None
    for name in checkpoints_of(workspace):
        if name != kept and (limit is None or step_of(name) <= limit):
            workspace.drop_part(name, keep=() if record is None else record.files)


def fetch(place: Place, run: TrainRun, workspace: Workspace) -> Path | None:
    """A folder with the files of `run.resume_from`, each with the sha256 of the part's record; None if there is nothing to
    continue from. All ranks call this together, one of a machine fetches.

    Raises CorruptArtifactError for a file whose sha256 differs, TrainError if the part is gone."""
    from torch import distributed

    name = run.resume_from
    if name is None:
        return None
    folder = place.folder / "resumed" / name
    if place.index == 0:
        record = workspace.part(name)
        if record is None:
            raise TrainError(f"the checkpoint {name} is gone from the store; run again")
        folder.mkdir(parents=True)
        for entry, path in zip(record.files, workspace.part_paths(record), strict=True):
            (folder / entry.name).symlink_to(path.resolve())
    distributed.barrier()
    return folder


def restore(rank: Rank, folder: Path, metrics: Path) -> tuple[int, bool]:
    """Continue from a fetched checkpoint: the number of steps already done, and whether the optimizer began anew on the way.
    All ranks call this together.

    Under another layout than the checkpoint's the weights are already in the engine and its optimizer is as new.
    Raises TrainError if DeepSpeed does not take the checkpoint."""
    from torch import distributed

    name = folder.name
    if rank.place.index == 0:
        shutil.copyfile(folder / METRICS, metrics)
    distributed.barrier()
    if layout_of(name) != rank.run.layout:
        rank.engine.global_steps = step_of(name)
        return step_of(name), True
    loaded, state = rank.engine.load_checkpoint(str(folder.parent), tag=name)
    if loaded is None:
        raise TrainError(f"DeepSpeed found no state in the checkpoint {name}; delete that part and run again")
    if rank.engine.global_steps != step_of(name):
        raise TrainError(f"the checkpoint {name} holds {rank.engine.global_steps} steps; delete that part and run again")
    return step_of(name), bool(state[RESTARTED])
