"""One rank's training: reference log-probs once, then the steps. The ranks run the same code and meet in every micro-batch."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo.errors import PolicyError, TrainError
from sppo.launch import Place
from sppo.loss import papers_scale
from sppo.progress import Progress, ProgressFile
from sppo.recipe import Training
from sppo.store import Artifact, Store
from sppo.train import adapters, batches, checkpoints, engine, weights
from sppo.train.examples import Examples, TrainingPrompt, open_examples, response_columns
from sppo.train.flops import measured_peak, training_flops
from sppo.train.forward import packed_policy
from sppo.train.labels import labels_of, read_by_loss, response_gates
from sppo.train.metrics import About, Pace, event_files, note, open_metrics
from sppo.train.objective import objective_of, step_scale
from sppo.train.rank import Array, MicroBatch, Rank
from sppo.train.reference_part import reference_of
from sppo.train.run import TrainRun
from sppo.train.schedule import learning_rate, schedule_of
from sppo.train.shape import ModelShape, read_shape

log = logging.getLogger(__name__)

RESULT = "result"
SUMS = ("loss", "best", "bests", "worst", "worsts", "tokens")
"""What the ranks add up each step."""


def train(place: Place, run: TrainRun) -> None:
    """Train pi_{t+1} and commit it as the part `result`. One call a process, all at once."""
    number, world_size, device = engine.connect(run)
    rank, policy, checkpoint = _open(place, run, number, world_size, device)
    metrics = rank.file(checkpoints.METRICS)
    done, restarted = (0, False) if checkpoint is None else checkpoints.restore(rank, checkpoint, metrics)
    saver = checkpoints.Saver(rank, policy.folder(), metrics, restarted)
    _steps(rank, reference_of(rank), _gates(rank), done, saver, _pace(rank, policy))
    saver.finish()
    write = weights.write_policy if run.training.adapter.kind == "none" else adapters.write_merged_policy
    files = write(rank.policy, policy.folder(), rank.file("policy"), rank.is_first)
    if rank.is_first:
        counts = {
            "resumed_from_step": done,
            checkpoints.RESTARTED: int(restarted),
            "tokens_per_device": run.hardware.tokens_per_device,
        }
        rank.workspace.commit_part(RESULT, [*files, metrics, *event_files(metrics)], counts)
        checkpoints.drop(rank.workspace, RESULT)
    rank.engine.destroy()


def _open(place: Place, run: TrainRun, number: int, world_size: int, device: str) -> tuple[Rank, Artifact, Path | None]:
    """The rank, pi_t, and a folder with the checkpoint to continue from."""
    import torch

    store = place.open_store()
    policy = store.open(run.policy)
    examples = _examples(store, run)
    workspace = store.workspace("train", run.fingerprint)
    checkpoint = checkpoints.fetch(place, run, workspace)
    if place.index == 0:
        policy.folder()  # fetched and linked by one rank of the machine, found by the others
    torch.distributed.barrier()
    model, opened = _engine(run, policy.folder(), checkpoint, device)
    rank = Rank(place, run, number, world_size, device, workspace, examples, store.open(run.responses), model, opened)
    if rank.is_first:
        _tell_of_long_prompts(rank)
    return rank, policy, checkpoint


def _engine(run: TrainRun, policy: Path, checkpoint: Path | None, device: str) -> tuple[Any, Any]:
    """The policy and DeepSpeed's engine around it, with the weights to begin with: pi_t's, or those of another layout's
    checkpoint. What a checkpoint of this layout holds comes later."""
    other = checkpoint if checkpoint is not None and checkpoints.layout_of(checkpoint.name) != run.layout else None
    sets_masters = run.dtype == "bfloat16" and (checkpoint is None or other is not None)
    if run.training.adapter.kind == "none":
        source = other or policy
        model = engine.load_policy(run, source)
        weights.parameters_of(model, source)  # what could not be written at the end is refused now
        opened = engine.open_engine(run, packed_policy(model, device=device))
        if sets_masters:
            weights.set_masters(model, source)
        return model, opened
    model = engine.load_policy(run, policy)
    if other is not None:
        adapters.read_adapters(model, other)
    opened = engine.open_engine(run, packed_policy(model, device=device))
    if sets_masters and other is not None:
        adapters.set_adapter_masters(model, other)
    return model, opened


def _examples(store: Store, run: TrainRun) -> Examples:
    prompts = store.open(run.prompts).file(run.prompts_file)
    found = open_examples(prompts, store.open(run.responses), store.open(run.targets), run.training.max_tokens)
    return read_by_loss(found, run.training)[0]


def _tell_of_long_prompts(rank: Rank) -> None:
    budget = rank.run.hardware.tokens_per_device
    longer = [prompt.tokens for prompt in rank.examples.prompts if prompt.tokens > budget]
    if longer:
        log.warning(
            "train: %d of %d prompts have more than train.tokens_per_device %d tokens with their responses, up to %d; each is "
            "a micro-batch of its own and needs that much more memory",
            len(longer),
            len(rank.examples.prompts),
            budget,
            max(longer),
        )


def _gates(rank: Rank) -> Array | None:
    """(R,) what s_sppo multiplies P - 1/2 by; None for the other losses."""
    if rank.run.training.loss != "s_sppo":
        return None
    return response_gates(rank.examples, response_columns(rank.responses, "text"), rank.run.training.gate_from)


def _pace(rank: Rank, policy: Artifact) -> tuple[Pace, ModelShape | None]:
    """How fast training goes, and the policy's shape for its FLOPs; None for an architecture whose FLOPs are not known."""
    peak = rank.run.peak_flops
    try:
        shape = read_shape(policy.folder())
    except PolicyError as problem:
        log.info("train: MFU is left out: %s", problem)
        shape, peak = None, None
    if shape is not None and peak is None and rank.run.device == "cpu":
        peak = measured_peak(rank.run.dtype)
    steps = schedule_of(rank.run.training, len(rank.examples.prompts)).stop
    return Pace(steps, rank.world_size, peak, rank.device), shape


def _steps(
    rank: Rank,
    reference: Array,
    gates: Array | None,
    done: int,
    saver: checkpoints.Saver,
    pace: tuple[Pace, ModelShape | None],
) -> None:
    """All optimizer steps from `done` on, with a checkpoint every so many; the first rank tells what each came to."""
    run = rank.run
    stop = schedule_of(run.training, len(rank.examples.prompts)).stop
    progress = ProgressFile(rank.place.progress)
    about = About(f"iteration-{run.iteration}", run.fingerprint, run.training.model_dump(mode="json"))
    with open_metrics(saver.metrics, about) if rank.is_first else contextlib.nullcontext() as told:
        for step, prompts, line in _batches(rank, done):
            line |= _step(rank, prompts, reference, gates, line["learning_rate"], pace, step)
            if not np.isfinite([line["loss"], line["gradient_norm"]]).all():
                raise TrainError(
                    f"step {step}: loss {line['loss']}, gradient norm {line['gradient_norm']}; expected finite numbers: "
                    "lower training.learning_rate, or look at the responses of this batch"
                )
            if told is not None:
                told.write(line)
                progress(Progress(stage="train", done=step, total=stop, unit="steps", note=note(line)))
            saver.advance()
            if step % run.hardware.checkpoint_steps == 0 and step < stop:
                saver.save(step)


def _batches(rank: Rank, done: int) -> Iterator[tuple[int, list[TrainingPrompt], dict[str, float]]]:
    """Each step from 1 on that is still to do: its number, its prompts, and where it stands in the schedule."""
    run = rank.run
    schedule = schedule_of(run.training, len(rank.examples.prompts))
    order: list[list[int]] = []
    for step in range(done, schedule.stop):
        epoch, position = divmod(step, schedule.steps_per_epoch)
        if not order or position == 0:
            ids = batches.epoch_order(rank.examples.prompt_ids, run.seed, run.iteration, epoch)
            order = batches.global_batches(ids, run.training.global_batch)
        rate = learning_rate(step, schedule, run.training)
        line = {"step": step + 1, "epoch": (step + 1) / schedule.steps_per_epoch, "learning_rate": rate}
        yield step + 1, [rank.examples.prompts[number] for number in order[position]], line


def _step(
    rank: Rank,
    prompts: Sequence[TrainingPrompt],
    reference: Array,
    gates: Array | None,
    rate: float,
    pace: tuple[Pace, ModelShape | None],
    step: int,
) -> dict[str, float]:
    """One optimizer step on a global batch; its figures, equal on all ranks."""
    started = time.monotonic()
    training = rank.run.training
    responses = sum(len(prompt.responses) for prompt in prompts)
    scale = step_scale(training, responses, rank.world_size)
    for group in rank.engine.optimizer.param_groups:
        group["lr"] = rate
    sums = dict.fromkeys(SUMS, 0.0)
    micro_batches = list(rank.micro_batches(prompts))
    for number, micro_batch in enumerate(micro_batches, 1):
        rank.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        _accumulate(rank, micro_batch, reference, gates, scale, sums)
    norm = _plain_gradient_norm(rank)
    rank.engine.step()
    total = _added_up(sums, rank.device)
    loss, seconds = total["loss"] / responses, time.monotonic() - started
    return {
        "loss": loss,
        "loss_on_papers_scale": loss * papers_scale(training),
        "gradient_norm": float(rank.engine.get_global_grad_norm() or norm or 0.0),
        "log_ratio_best": total["best"] / max(1.0, total["bests"]),
        "log_ratio_worst": total["worst"] / max(1.0, total["worsts"]),
        "responses": responses,
        "micro_batches": len(micro_batches),
        "tokens": total["tokens"],
        **pace[0].figures(
            step, seconds, total["tokens"], responses, _pairs(prompts), _useful_flops(prompts, pace[1], training)
        ),
    }


def _pairs(prompts: Sequence[TrainingPrompt]) -> int:
    """Prompts with their best and their worst response among these."""
    return sum({"best", "worst"} <= {response.role for response in prompt.responses} for prompt in prompts)


def _useful_flops(prompts: Sequence[TrainingPrompt], shape: ModelShape | None, training: Training) -> float:
    if shape is None:
        return 0.0
    lengths = [(len(prompt.token_ids), [len(response.token_ids) for response in prompt.responses]) for prompt in prompts]
    return training_flops(shape, lengths, training.adapter)


def _accumulate(
    rank: Rank, micro_batch: MicroBatch, reference: Array, gates: Array | None, scale: float, sums: dict[str, float]
) -> None:
    """Forward and backward of one micro-batch."""
    packing, responses = micro_batch.packing, micro_batch.responses
    if not responses:
        loss, _ = rank.engine(packing, lambda log_probs, _: log_probs * 0.0)
        rank.engine.backward(loss, scale_wrt_gas=False)
        return
    before = reference[[response.row for response in responses]]  # (B,)
    labels = labels_of(micro_batch.prompts, gates)
    loss, log_probs = rank.engine(packing, objective_of(rank.run.training, labels, before, scale, rank.device))
    rank.engine.backward(loss, scale_wrt_gas=False)
    sums["loss"] += float(loss.detach()) / scale
    sums["tokens"] += packing.tokens
    for response, ratio in zip(responses, log_probs.cpu().numpy() - before, strict=True):
        if response.role in ("best", "worst"):
            sums[response.role] += ratio
            sums[response.role + "s"] += 1


def _plain_gradient_norm(rank: Rank) -> float | None:
    """Norm of the averaged gradients under ZeRO-0, where DeepSpeed clips without telling."""
    import torch

    if rank.run.hardware.zero_stage != 0:
        return None
    gradients = [parameter.grad for parameter in rank.policy.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _added_up(sums: dict[str, float], device: str) -> dict[str, float]:
    import torch

    values = torch.tensor([sums[name] for name in SUMS], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(SUMS, values.tolist(), strict=True))
