"""TRL's DPOTrainer with loss_type sppo_hard, in TRL's own environment: a rival of benchmarks/training.py.

`settings` are fields of DPOConfig; without any the trainer is as it ships, except for what all sides share: the loss, its beta,
8 pairs a step, RMSprop, the learning rate, and the order of the pairs.
"""

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout this file lies in

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.material.preferences import Asked, as_words, read_steps
from benchmarks.material.turns import Turns


class TakesTurns(TrainerCallback):
    """Holds the trainer between its steps until it is asked for the next one."""

    def __init__(self, turns: Turns, trainer: "Timed") -> None:
        self.turns = turns
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        pairs = len(self.trainer.train_dataset)
        wall, cpu = self.trainer.precomputing
        control.should_training_stop = not self.turns.ready(
            precompute_wall_per_pair=wall / pairs, precompute_per_pair=cpu / pairs
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss, self.trainer.loss = self.trainer.loss / 2, 0.0  # it adds up a pair's two, the other sides average them
        control.should_training_stop = not self.turns.done(loss)


class Timed(DPOTrainer):
    """The trainer as it is, its loss and the time that it precomputes for kept."""

    loss = 0.0
    precomputing = (0.0, 0.0)
    """Seconds on the clock and of the CPU."""

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        loss = super().training_step(*arguments, **named)
        self.loss += float(loss)
        return loss

    def _precompute_ref_logps(self, *arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = super()._precompute_ref_logps(*arguments)
        self.precomputing = (time.perf_counter() - wall, time.process_time() - cpu)
        return found


def main() -> None:
    """Take turns until there are no more."""
    told = json.loads(sys.argv[1])
    importlib.import_module("transformers.models.llama.modeling_llama")
    turns = Turns()
    asked = [one for step in read_steps(Path(told["steps"])) for one in step]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            loss_type=["sppo_hard"],
            beta=1 / told["eta"],
            optim="rmsprop",
            learning_rate=told["learning_rate"],
            lr_scheduler_type="constant",
            max_length=2048,
            per_device_train_batch_size=told["micro_batch"],
            gradient_accumulation_steps=told["pairs"] // told["micro_batch"],
            max_steps=1_000_000,
            use_cpu=told.get("device", "cpu") == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **{"train_sampling_strategy": "sequential"} | told["settings"],
        )
        tokenizer = AutoTokenizer.from_pretrained(told["policy"])
        trainer = Timed(told["policy"], args=config, train_dataset=dataset(asked), processing_class=tokenizer)
        check_ids(trainer, asked)
        trainer.add_callback(TakesTurns(turns, trainer))
        trainer.train()


def dataset(asked: list[Asked]) -> Dataset:
    """Text that the tokenizer turns into the same ids; `length` is for the samplers that balance by it."""
    columns = ("prompt", "chosen", "rejected")
    texts = [dict(zip(columns, (as_words(ids) for ids in (one.prompt, *one.responses)), strict=True)) for one in asked]
    lengths = [len(one.prompt) + max(map(len, one.responses)) for one in asked]
    spaced = [{**text, "chosen": " " + text["chosen"], "rejected": " " + text["rejected"]} for text in texts]
    return Dataset.from_list([{**text, "length": length} for text, length in zip(spaced, lengths, strict=True)])


def check_ids(trainer: DPOTrainer, asked: list[Asked]) -> None:
    """Raises RuntimeError unless the trainer trains on the very ids."""
    for one, row in zip(asked, trainer.train_dataset, strict=True):
        if [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] != [one.prompt, *one.responses]:
            raise RuntimeError("the trainer's token ids differ from those that the other sides train on")


if __name__ == "__main__":
    main()
