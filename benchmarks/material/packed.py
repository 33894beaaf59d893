"""Our way to train, as sppo.train.loop does it in one process: a side of benchmarks/training.py.

Packed rows, each prompt once, the fused head. `engine` is `torch` for fp32 weights under bf16 autocast, as the rivals have
them, or `deepspeed` for the engine that the stage uses, bf16 weights with fp32 masters. `reference` is `sampler`, whose
log-probs are there, or `recompute`, which runs one forward pass more. B responses.
"""

import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout this file lies in

import numpy as np
import numpy.typing as npt

from benchmarks.material.preferences import Asked, read_steps
from benchmarks.material.turns import Turns
from sppo.hardware import TrainHardware
from sppo.recipe import Training
from sppo.train.examples import TrainingPrompt, TrainingResponse
from sppo.train.labels import labels_of
from sppo.train.objective import objective_of, step_scale
from sppo.train.packing import PackedBatch, pack, plan

Backward = Callable[[Any, bool], None]
"""Backward pass of a micro-batch's loss, and whether it is a step's last."""


@dataclass
class Trainer:
    """A policy, and how it takes a step."""

    policy: Any
    """The packed policy, or DeepSpeed's engine around it."""
    backward: Backward
    update: Callable[[], None]
    autocast: Callable[[], Any]
    training: Training
    tokens_per_device: int
    device: str = "cpu"

    def micro_batches(self, prompts: list[TrainingPrompt]) -> Iterator[tuple[PackedBatch, list[TrainingPrompt]]]:
        """As sppo.train.rank.Rank shares a step out."""
        for places in plan([prompt.tokens for prompt in prompts], 1, self.tokens_per_device).of_rank(0):
            mine = [prompts[place] for place in places]
            yield pack([(one.token_ids, [response.token_ids for response in one.responses]) for one in mine]), mine

    def log_probs(self, prompts: list[TrainingPrompt]) -> dict[int, float]:
        """log pi(y|x) by row."""
        import torch

        found: dict[int, float] = {}
        with torch.no_grad(), self.autocast():
            for packing, mine in self.micro_batches(prompts):
                rows = [response.row for one in mine for response in one.responses]
                found |= dict(zip(rows, self.policy(packing).tolist(), strict=True))
        return found

    def step(self, prompts: list[TrainingPrompt], reference: npt.NDArray[np.float64]) -> float:
        """One optimizer step; its loss on the paper's scale. reference: (B,) by row, of all steps."""
        scale = step_scale(self.training, sum(len(prompt.responses) for prompt in prompts), 1)
        total = 0.0
        micro_batches = list(self.micro_batches(prompts))
        for number, (packing, mine) in enumerate(micro_batches, 1):
            before = reference[[response.row for one in mine for response in one.responses]]  # (B,)
            objective = objective_of(self.training, labels_of(mine), before, scale, self.device)
            with self.autocast():
                loss, _ = self.policy(packing, objective)
            self.backward(loss, number == len(micro_batches))
            total += float(loss.detach())
        self.update()
        return total


def main() -> None:
    """Take turns until there are no more; or profile two steps."""
    told = json.loads(sys.argv[1])
    importlib.import_module("transformers.models.llama.modeling_llama")
    if told["engine"] == "deepspeed":
        one_process()
        importlib.import_module("deepspeed")
    turns = Turns()
    trainer = make_trainer(told)
    steps = read_prompts(read_steps(Path(told["steps"])))
    values: dict[int, float] = {}
    for prompts in steps:
        values |= trainer.log_probs(prompts)
    reference = np.array([values[row] for row in range(len(values))])  # (B,)
    if told.get("profile"):
        profile(trainer, steps, reference, Path(told["profile"]))
        return
    number, more = 0, turns.ready()
    while more:
        prompts = steps[number % len(steps)]
        if told["reference"] == "recompute":
            trainer.log_probs(prompts)  # as long as by the weights of pi_t, whose values are used
        loss = trainer.step(prompts, reference)
        number, more = number + 1, turns.done(loss)


def read_prompts(steps: list[list[Asked]]) -> list[list[TrainingPrompt]]:
    """Batches as the training stage has them."""
    found: list[list[TrainingPrompt]] = []
    row = 0
    for number, step in enumerate(steps):
        found.append([])
        for place, asked in enumerate(step):
            responses = []
            for k, (ids, win) in enumerate(zip(asked.responses, asked.wins, strict=True)):
                role = "best" if k == 0 else "worst" if k == len(asked.responses) - 1 else "other"
                responses.append(TrainingResponse(row, k, np.array(ids, np.int32), win, role))
                row += 1
            found[-1].append(TrainingPrompt(f"{number}-{place}", np.array(asked.prompt, np.int32), tuple(responses)))
    return found


def training_of(told: dict[str, Any]) -> Training:
    """The recipe's part, as the rivals are told it."""
    return Training(
        loss="sppo",
        eta=told["eta"],
        learning_rate=told["learning_rate"],
        optimizer="rmsprop",
        schedule="constant",
        warmup_ratio=0,
        schedule_epochs=1,
        stop_epochs=1,
        global_batch=told["pairs"],
        max_tokens=2048,
        max_grad_norm=1.0,
    )


def make_trainer(told: dict[str, Any]) -> Trainer:
    """As told: plain torch, or DeepSpeed's engine."""
    return with_deepspeed(told) if told["engine"] == "deepspeed" else with_torch(told)


def with_torch(told: dict[str, Any]) -> Trainer:
    """fp32 weights under bf16 autocast, clipping and RMSprop by torch."""
    import torch
    from transformers import AutoModelForCausalLM

    from sppo.train import attention
    from sppo.train.forward import packed_policy
    from sppo.train.optimizers import optimizer_for

    model = AutoModelForCausalLM.from_pretrained(
        told["policy"], dtype=torch.float32, attn_implementation=attention.register()
    ).train()
    if told["recompute"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = optimizer_for(training_of(told), model.parameters())

    def backward(loss: Any, last: bool) -> None:
        loss.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Trainer(
        packed_policy(model),
        backward,
        update,
        lambda: torch.autocast("cpu", torch.bfloat16),
        training_of(told),
        told["tokens_per_device"],
    )


def one_process() -> None:
    """The environment of a rank that is alone."""
    from sppo.train.engine import prepare_environment

    prepare_environment("cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def with_deepspeed(told: dict[str, Any]) -> Trainer:
    """As the stage runs it on one device: ZeRO-1, bf16 weights, fp32 masters and sums."""
    from sppo.train import engine, weights
    from sppo.train.forward import packed_policy
    from sppo.train.run import TrainRun

    hardware = TrainHardware(
        processes=1,
        tokens_per_device=told["tokens_per_device"],
        zero_stage=1,
        offload="none",
        recompute_activations=told["recompute"],
        checkpoint_steps=1_000_000,
        timeout_s=600,
    )
    run = TrainRun(
        fingerprint="0" * 64,
        iteration=1,
        seed=0,
        dtype="bfloat16",
        policy="",
        prompts="",
        prompts_file="",
        responses="",
        targets="",
        training=training_of(told),
        device="cpu",
        hardware=hardware,
        resume_from=None,
    )
    engine.connect(run)
    model = engine.load_policy(run, Path(told["policy"]))
    opened = engine.open_engine(run, packed_policy(model))
    weights.set_masters(model, Path(told["policy"]))

    def backward(loss: Any, last: bool) -> None:
        opened.set_gradient_accumulation_boundary(last)
        opened.backward(loss, scale_wrt_gas=False)

    return Trainer(opened, backward, opened.step, nullcontext, run.training, told["tokens_per_device"])


def profile(trainer: Trainer, steps: list[list[TrainingPrompt]], reference: npt.NDArray[np.float64], report: Path) -> None:
    """Write where the CPU's time of the steps goes, by operation, after a step that warms up."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    trainer.step(steps[0], reference)
    with watch(activities=[ProfilerActivity.CPU]) as watched:
        for prompts in steps:
            trainer.step(prompts, reference)
    events = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in watched.key_averages()]
    report.write_text(json.dumps(sorted(events, key=lambda event: -event[1])), encoding="utf-8")


if __name__ == "__main__":
    main()
