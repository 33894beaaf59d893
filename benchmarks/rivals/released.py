"""The released code's way to train (uclaml/SPPO, sppo/trainer.py), its steps written out: a rival of benchmarks/training.py.

Chosen and rejected are padded to the longest and stacked; the policy and a frozen copy of it run over all of them in every
step; the logits of every token are turned into fp32 log-probs of the whole vocabulary, of which one a token is picked and those
of the prompt are masked. Its configuration has 8 pairs a device at once and recomputes activations; `micro_batch` and
`recompute` vary that. fp32 weights under bf16 autocast, as TRL has it. B sequences, T tokens, V vocabulary.
"""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout this file lies in

import torch
from transformers import AutoModelForCausalLM

from benchmarks.material.masters import Masters
from benchmarks.material.preferences import PAD, Asked, read_steps
from benchmarks.material.turns import Turns


def main() -> None:
    """Take turns until there are no more."""
    told = json.loads(sys.argv[1])
    importlib.import_module("transformers.models.llama.modeling_llama")
    turns = Turns()
    dtype = getattr(torch, told["weights"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(told["policy"], dtype=dtype) for _ in range(2))
    if told["recompute"]:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    masters = Masters(policy.parameters(), told["learning_rate"])
    trainer = Trainer(policy.train(), reference.eval(), masters, told["micro_batch"], told["eta"])
    steps = read_steps(Path(told["steps"]))
    number, more = 0, turns.ready()
    while more:
        loss = trainer.step(steps[number % len(steps)])
        number, more = number + 1, turns.done(loss)


@dataclass
class Trainer:
    """The policy, its frozen copy, and the optimizer."""

    policy: Any
    reference: Any
    masters: Masters
    micro_batch: int
    eta: float

    def step(self, batch: list[Asked]) -> float:
        """One optimizer step; its loss on the paper's scale."""
        total = 0.0
        for start in range(0, len(batch), self.micro_batch):
            pairs = batch[start : start + self.micro_batch]
            sequences = [each.to(self.policy.device) for each in stacked(pairs)]
            # bf16 weights need none, and fp32 ones run under it as TRL's do
            with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.policy.dtype == torch.float32):
                log_probs = summed(self.policy, *sequences)  # (B,)
                with torch.no_grad():
                    before = summed(self.reference, *sequences)  # (B,)
            wins = torch.tensor([asked.wins[k] for k in (0, 1) for asked in pairs], device=self.policy.device)  # (B,)
            errors = log_probs - before - self.eta * (wins - 0.5)  # (B,)
            loss = (errors**2).sum() / (2 * len(batch))
            loss.backward()
            total += float(loss.detach())
        self.masters.step()
        return total


def stacked(pairs: list[Asked]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, which of them are no padding, and labels (-100 for prompt and padding), each (B, T): chosen, then rejected."""
    sequences = [(asked.prompt, asked.responses[k]) for k in (0, 1) for asked in pairs]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    token_ids = torch.full((len(sequences), width), PAD)  # (B, T)
    present = torch.zeros_like(token_ids)  # (B, T)
    labels = torch.full_like(token_ids, -100)  # (B, T)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        token_ids[row, :end] = torch.tensor(prompt + response)
        present[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return token_ids, present, labels


def summed(model: Any, token_ids: torch.Tensor, present: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) log-probs of the responses, by way of the log-probs of every token of the vocabulary at every place."""
    logits = model(token_ids, attention_mask=present, use_cache=False).logits.to(torch.float32)  # (B, T, V)
    targets = labels[:, 1:].clone()  # (B, T - 1)
    counted = targets != -100  # (B, T - 1)
    targets[~counted] = 0
    each = logits[:, :-1].log_softmax(-1).gather(2, targets.unsqueeze(2)).squeeze(2)  # (B, T - 1)
    return (each * counted).sum(-1)


if __name__ == "__main__":
    main()
