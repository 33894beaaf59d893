"""One rank's training: reference log-probs once, then the steps. The ranks run the same code and meet in every micro-batch."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import TrainError
from sppo.launch import Place
from sppo.loss import on_papers_scale, sppo_loss
from sppo.progress import Progress, ProgressFile
from sppo.store import Artifact, Workspace
from sppo.store.store import write_parquet
from sppo.train import batches, checkpoints, engine, weights
from sppo.train.examples import Examples, TrainingResponse, open_examples
from sppo.train.logprobs import MicroBatch, ResponseLogProbs, pad
from sppo.train.run import TrainRun
from sppo.train.schedule import learning_rate, schedule_of

log = logging.getLogger(__name__)

REFERENCE = "reference"
RESULT = "result"
SUMS = ("loss", "best", "bests", "worst", "worsts", "tokens")
"""What the ranks add up each step."""


@dataclass(frozen=True)
class Rank:
    """What one process works with."""

    place: Place
    run: TrainRun
    number: int
    world_size: int
    device: str
    workspace: Workspace
    examples: Examples
    engine: Any
    log_probs: ResponseLogProbs

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def file(self, name: str) -> Path:
        """A file of this attempt, shared by the machine's ranks."""
        return self.place.folder / name

    def share(self, batch: Sequence[int], steps: int) -> list[list[int]]:
        """This rank's micro-batches of a batch of prompts."""
        tokens = [self.examples.prompts[position].tokens for position in batch]
        return batches.share(batch, tokens, self.number, self.world_size, self.run.hardware.micro_batch, steps)

    def micro_batch(self, positions: Sequence[int]) -> tuple[MicroBatch, list[TrainingResponse]]:
        """The padded responses of some prompts. Without any, the shortest sequence of all and no response: a rank that has
        nothing to add still has to run, for the others wait for it to gather the weights."""
        prompts = [self.examples.prompts[position] for position in positions]
        if not prompts:
            shortest = min(self.examples.prompts, key=lambda prompt: (prompt.tokens, prompt.prompt_id))
            return pad([(shortest.token_ids, shortest.responses[0].token_ids)]), []
        pairs = [(prompt.token_ids, response) for prompt in prompts for response in prompt.responses]
        return pad([(ids, response.token_ids) for ids, response in pairs]), [response for _, response in pairs]


def train(place: Place, run: TrainRun) -> None:
    """Train pi_{t+1} and commit it as the part `result`. One call a process, all at once."""
    number, world_size, device = engine.connect(run)
    rank, policy = _open(place, run, number, world_size, device)
    metrics = rank.file(checkpoints.METRICS)
    done = checkpoints.restore(rank.engine, place, run, rank.workspace, metrics)
    reference = _reference(rank)
    _steps(rank, reference, done, metrics)
    files = weights.write_policy(rank.engine.module, policy.folder(), rank.file("policy"), rank.is_first)
    if rank.is_first:
        counts = {"resumed_from_step": done, "micro_batch": run.hardware.micro_batch}
        rank.workspace.commit_part(RESULT, [*files, metrics], counts)
        checkpoints.drop(rank.workspace)
    rank.engine.destroy()


def _open(place: Place, run: TrainRun, number: int, world_size: int, device: str) -> tuple[Rank, Artifact]:
    import torch

    store = place.open_store()
    policy = store.open(run.policy)
    examples = open_examples(
        store.open(run.prompts).file(run.prompts_file),
        store.open(run.responses),
        store.open(run.targets),
        run.training.max_tokens,
    )
    if place.index == 0:
        policy.folder()  # fetched and linked by one rank of the machine, found by the others
    torch.distributed.barrier()
    model = engine.load_policy(run, policy.folder())
    weights.parameters_of(model, policy.folder())  # what could not be written at the end is refused now
    log_probs = ResponseLogProbs(model)
    opened = engine.open_engine(run, model)
    if run.dtype == "bfloat16" and run.resume_from is None:
        weights.set_masters(model, policy.folder())
    workspace = store.workspace("train", run.fingerprint)
    return Rank(place, run, number, world_size, device, workspace, examples, opened, log_probs), policy


def _reference(rank: Rank) -> npt.NDArray[np.float64]:
    """(R,) log pi_t(y|x) of every selected response, in nats: computed once by the weights before any update, then reread.

    All ranks call this together. Nothing of pi_t stays in memory."""
    import torch

    rows = rank.examples.responses
    record = rank.workspace.part(REFERENCE)
    if record is None and rank.run.resume_from is not None:
        raise TrainError("a checkpoint is there and the reference log-probs are gone; delete the checkpoint and run again")
    if record is None:
        found = torch.zeros(len(rows), dtype=torch.float64)  # (R,)
        everything = range(len(rank.examples.prompts))
        at_once = rank.world_size * rank.run.hardware.micro_batch
        rank.engine.eval()
        with torch.no_grad():
            for positions in rank.share(everything, -(-len(everything) // at_once)):
                batch, responses = rank.micro_batch(positions)
                values = rank.log_probs(rank.engine, batch, rank.device)  # (B,)
                for response, value in zip(responses, values.tolist(), strict=False):
                    found[response.row] = value
        rank.engine.train()
        found = found.to(rank.device)
        torch.distributed.all_reduce(found)  # each row comes from one rank, the others add 0
        if rank.is_first:
            _commit_reference(rank, found.cpu().numpy())
        torch.distributed.barrier()
        record = rank.workspace.part(REFERENCE)
    if record is None:
        raise TrainError("the reference log-probs were written and are not there; check the store and run again")
    table = pq.read_table(rank.workspace.part_path(record.files[0]), page_checksum_verification=True)
    reference: npt.NDArray[np.float64] = table["logprob"].to_numpy()  # (R,)
    odd = int((~np.isfinite(reference)).sum())
    if len(reference) != len(rows) or odd:
        raise TrainError(
            f"{len(reference)} reference log-probs for {len(rows)} responses, {odd} not finite; "
            "expected one finite number each: check the policy's weights"
        )
    return reference


def _commit_reference(rank: Rank, values: npt.NDArray[np.float64]) -> None:
    owners = [(prompt.prompt_id, response.k) for prompt in rank.examples.prompts for response in prompt.responses]
    columns = {"prompt_id": [owner[0] for owner in owners], "k": [owner[1] for owner in owners], "logprob": values}
    write_parquet(pa.table(columns), rank.file("reference.parquet"))
    rank.workspace.commit_part(REFERENCE, [rank.file("reference.parquet")], {"responses": len(owners)})


def _steps(rank: Rank, reference: npt.NDArray[np.float64], done: int, metrics: Path) -> None:
    """All optimizer steps from `done` on, with a checkpoint every so many."""
    run = rank.run
    schedule = schedule_of(run.training, len(rank.examples.prompts))
    progress = ProgressFile(rank.place.progress)
    order: list[list[int]] = []
    for step in range(done, schedule.stop):
        epoch, position = divmod(step, schedule.steps_per_epoch)
        if not order or position == 0:
            ids = batches.epoch_order(rank.examples.prompt_ids, run.seed, run.iteration, epoch)
            order = batches.global_batches(ids, run.training.global_batch)
        rate = learning_rate(step, schedule, run.training)
        line = {"step": step + 1, "epoch": (step + 1) / schedule.steps_per_epoch, "learning_rate": rate}
        line |= _step(rank, order[position], reference, rate)
        if not np.isfinite([line["loss"], line["gradient_norm"]]).all():
            raise TrainError(
                f"step {step + 1}: loss {line['loss']}, gradient norm {line['gradient_norm']}; expected finite numbers: "
                "lower training.learning_rate, or look at the responses of this batch"
            )
        if rank.is_first:
            with metrics.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            note = f"loss {line['loss']:.4f}, {line['tokens_per_s']:,.0f} tokens/s"
            progress(Progress(stage="train", done=step + 1, total=schedule.stop, unit="steps", note=note))
        if (step + 1) % run.hardware.checkpoint_steps == 0 and step + 1 < schedule.stop:
            checkpoints.save(rank.engine, rank.place, run, rank.workspace, step + 1, metrics)


def _step(rank: Rank, batch: Sequence[int], reference: npt.NDArray[np.float64], rate: float) -> dict[str, float]:
    """One optimizer step on a global batch; its figures, equal on all ranks."""
    started = time.monotonic()
    responses = sum(len(rank.examples.prompts[position].responses) for position in batch)
    sums = dict.fromkeys(SUMS, 0.0)
    for group in rank.engine.optimizer.param_groups:
        group["lr"] = rate
    norm: float | None = None
    for positions in rank.share(batch, rank.run.accumulation_steps):
        _accumulate(rank, positions, reference, responses, sums)
        norm = _plain_gradient_norm(rank)
        rank.engine.step()
    total = _added_up(sums, rank.device)
    loss = total["loss"] / responses
    eta = rank.run.training.eta
    return {
        "loss": loss,
        "loss_on_papers_scale": on_papers_scale(loss, eta),
        "gradient_norm": float(rank.engine.get_global_grad_norm() or norm or 0.0),
        "log_ratio_best": total["best"] / max(1.0, total["bests"]),
        "log_ratio_worst": total["worst"] / max(1.0, total["worsts"]),
        "responses": responses,
        "tokens": total["tokens"],
        "tokens_per_s": total["tokens"] / (time.monotonic() - started),
    }


def _accumulate(
    rank: Rank,
    positions: Sequence[int],
    reference: npt.NDArray[np.float64],
    responses: int,
    sums: dict[str, float],
) -> None:
    """Forward and backward of one micro-batch; `responses` is the number in the whole global batch."""
    import torch

    batch, rows = rank.micro_batch(positions)
    log_probs = rank.log_probs(rank.engine, batch, rank.device)  # (B,)
    if not rows:
        rank.engine.backward(log_probs.sum() * 0.0, scale_wrt_gas=False)
        return
    wins = torch.tensor([row.win_probability for row in rows], dtype=torch.float32, device=rank.device)  # (B,)
    before = torch.tensor(reference[[row.row for row in rows]], device=rank.device)  # (B,)
    log_ratios = (log_probs.double() - before).float()  # (B,)
    eta = rank.run.training.eta
    losses = sppo_loss(log_ratios, wins, eta)  # (B,)
    # DeepSpeed averages gradients over ranks: times the number of ranks, it is the sum. The gradient is the paper's loss's,
    # so that max_grad_norm clips what the released code clips.
    objective = on_papers_scale(losses.sum(), eta) * rank.world_size / responses
    rank.engine.backward(objective, scale_wrt_gas=False)
    sums["loss"] += float(losses.detach().sum())
    sums["tokens"] += batch.tokens
    for row, ratio in zip(rows, log_ratios.tolist(), strict=True):
        if row.role in ("best", "worst"):
            sums[row.role] += ratio
            sums[row.role + "s"] += 1


def _plain_gradient_norm(rank: Rank) -> float | None:
    """Norm of the averaged gradients under ZeRO-0 at a step's last micro-batch, where DeepSpeed clips without telling."""
    import torch

    if rank.run.hardware.zero_stage != 0 or not rank.engine.is_gradient_accumulation_boundary():
        return None
    gradients = [parameter.grad for parameter in rank.engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _added_up(sums: dict[str, float], device: str) -> dict[str, float]:
    import torch

    values = torch.tensor([sums[name] for name in SUMS], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(SUMS, values.tolist(), strict=True))
