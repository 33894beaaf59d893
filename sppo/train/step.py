"""The train stage as the store sees it: identity, everything that can be refused before a process starts, and the outcome."""

import json
import logging
import statistics
import uuid
from collections.abc import Callable

from sppo.errors import OutOfMemoryError, TrainError
from sppo.hardware import Hardware, TrainHardware
from sppo.launch import HERE, Group, Launcher, Ranks, keep_accounts
from sppo.recipe import Recipe
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, PartRecord, Step, Workspace
from sppo.store.artifact import ArtifactFile
from sppo.train import checkpoints
from sppo.train.engine import check_hardware
from sppo.train.examples import Examples, open_examples
from sppo.train.labels import read_by_loss
from sppo.train.reference_part import audit_of
from sppo.train.run import TrainRun, layout
from sppo.train.schedule import schedule_of

log = logging.getLogger(__name__)


def step(
    recipe: Recipe,
    hardware: Hardware,
    iteration: int,
    policy: Artifact,
    prompts: ArtifactFile,
    responses: Artifact,
    targets: Artifact,
    launch: Launcher = HERE,
) -> Step:
    """The next policy, pi_{t+1} = argmin E (log pi_theta/pi_t - eta (P - 1/2))^2, as a policy folder with fp32 weights.

    The hardware says where and how fast, and is no part of the identity.
    Raises RecipeError for an iteration the recipe does not have; running it raises HardwareError or TrainError before any
    process starts, LaunchError if one fails."""
    recipe.check_iteration(iteration)
    identity = stage_identity(
        "train",
        recipe,
        {"policy": policy, "prompts": prompts, "responses": responses, "targets": targets},
        {"iteration": iteration},
    )

    def run(workspace: Workspace) -> Outcome:
        check_hardware(hardware, recipe.policy.dtype)
        found = open_examples(prompts, responses, targets, recipe.training.max_tokens)
        examples, unread = read_by_loss(found, recipe.training)
        check_enough(examples, recipe.training.global_batch)

        def told(machine: TrainHardware) -> TrainRun:
            return TrainRun(
                fingerprint=identity.fingerprint,
                iteration=iteration,
                seed=recipe.seed,
                dtype=recipe.policy.dtype,
                policy=policy.reference,
                prompts=prompts.artifact.reference,
                prompts_file=prompts.name,
                responses=responses.reference,
                targets=targets.reference,
                training=recipe.training,
                device=hardware.device,
                hardware=machine,
                peak_flops=None if hardware.peak_tflops is None else hardware.peak_tflops * 1e12,
                resume_from=checkpoints.latest(workspace, layout(machine), recipe.training.other_layout),
            )

        if workspace.part("result") is None:
            _train(told, hardware, workspace, launch, max(prompt.tokens for prompt in examples.prompts))
        return _outcome(recipe, examples, unread, workspace)

    return Step(identity, run)


def check_enough(examples: Examples, global_batch: int) -> None:
    """Raises TrainError if nothing is selected, or less than one global batch."""
    found = len(examples.prompts)
    if found < global_batch:
        raise TrainError(
            f"{found} prompts have a response to train on ({examples.unselected} have none selected, {examples.overlong} fill "
            f"max_tokens alone); expected at least one global batch of {global_batch}: use more prompts, lower "
            "training.global_batch, or relax `selection`: the estimate line of the log says what it left out"
        )


def rank_groups(run: TrainRun, hardware: Hardware) -> list[Group]:
    """One group a machine, one process a rank; all ranks are told the same."""
    nodes, processes = run.hardware.nodes, run.hardware.processes
    meeting = f"train/{run.fingerprint}/work/{uuid.uuid4().hex}.meeting.json" if nodes > 1 else None
    return [
        Group(
            stage="train",
            fingerprint=run.fingerprint,
            number=node + 1,
            of=nodes,
            module="sppo.workers.train",
            works=(run.model_dump(mode="json"),) * processes,
            device=hardware.device,
            devices_each=1,
            threads=hardware.threads,
            timeout_s=run.hardware.timeout_s,
            ranks=Ranks(first=node * processes, size=run.hardware.ranks, meeting=meeting),
        )
        for node in range(nodes)
    ]


def _train(
    told: Callable[[TrainHardware], TrainRun], hardware: Hardware, workspace: Workspace, launch: Launcher, longest: int
) -> None:
    """Train, with half the tokens at once as often as a device runs out of memory: more micro-batches, the same result.

    longest: tokens of the longest prompt with its responses, which no smaller budget makes smaller."""
    machine = hardware.train
    while True:
        try:
            keep_accounts(workspace, launch.run(rank_groups(told(machine), hardware), workspace.store, workspace.report))
            return
        except OutOfMemoryError as error:
            if machine.tokens_per_device <= longest:
                raise
            fewer = max(longest, machine.tokens_per_device // 2)
            machine = machine.model_copy(update={"tokens_per_device": fewer})
            log.warning("train: out of memory, tokens_per_device lowered to %d: %s", fewer, error)


def _outcome(recipe: Recipe, examples: Examples, unread: int, workspace: Workspace) -> Outcome:
    """What was trained, from the part that the workers committed; its metrics become a log of the artifact."""
    record = workspace.part("result")
    if record is None:
        raise TrainError("the training processes ended without a result; run again to continue from the last checkpoint")
    lines = _adopt(record, workspace)
    schedule = schedule_of(recipe.training, len(examples.prompts))
    seconds = sum(line["seconds"] for line in lines)
    counts = {
        "prompts": len(examples.prompts),
        "responses": len(examples.responses),
        "tokens": int(sum(line["tokens"] for line in lines)),
        "steps": schedule.stop,
        "unread_responses": unread,
        "unselected_prompts": examples.unselected,
        "overlong_prompts": examples.overlong,
        **record.counts,
    }
    metrics = {
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "first_loss_on_papers_scale": lines[0]["loss_on_papers_scale"],
        "last_loss_on_papers_scale": lines[-1]["loss_on_papers_scale"],
        "last_gradient_norm": lines[-1]["gradient_norm"],
        "tokens_per_s": counts["tokens"] / seconds,
        **({"useful_mfu": statistics.median(line["useful_mfu"] for line in lines)} if "useful_mfu" in lines[0] else {}),
        **audit_of(workspace),
    }
    resumed = f" (resumed at {counts['resumed_from_step']})" if counts["resumed_from_step"] else ""
    resumed += ", the optimizer restarted under another layout" if counts[checkpoints.RESTARTED] else ""
    summary = (
        f"{counts['prompts']} prompts, {counts['responses']} responses, {counts['steps']} steps{resumed}, "
        f"loss {metrics['first_loss']:.4f} -> {metrics['last_loss']:.4f}"
    )
    return Outcome(summary, counts, metrics)


def _adopt(record: PartRecord, workspace: Workspace) -> list[dict[str, float]]:
    for entry in record.files:
        looked_at = entry.name == checkpoints.METRICS or entry.name.startswith("events.out.tfevents")
        (workspace.logs if looked_at else workspace.files).append(entry)
    [metrics] = [entry for entry in record.files if entry.name == checkpoints.METRICS]
    return [json.loads(line) for line in workspace.part_path(metrics).read_text(encoding="utf-8").splitlines()]
