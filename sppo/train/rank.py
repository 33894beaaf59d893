"""What one training process works with, and its share of prompts as packed micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sppo.launch import Place
from sppo.store import Artifact, Workspace
from sppo.train.examples import Examples, TrainingPrompt, TrainingResponse
from sppo.train.packing import PackedBatch, Plan, pack, plan
from sppo.train.run import TrainRun

Array = npt.NDArray[np.float64]


class MicroBatch(NamedTuple):
    """What a rank computes at once."""

    packing: PackedBatch
    prompts: list[TrainingPrompt]
    """Empty for a rank that only keeps the others company: its row is a stand-in that counts for nothing."""

    @property
    def responses(self) -> list[TrainingResponse]:
        """In the order of the row."""
        return [response for prompt in self.prompts for response in prompt.responses]


@dataclass(frozen=True)
class Rank:
    """One process of a training; all run the same code and meet in every micro-batch."""

    place: Place
    run: TrainRun
    number: int
    world_size: int
    device: str
    workspace: Workspace
    examples: Examples
    responses: Artifact
    policy: Any
    """The transformers model itself."""
    engine: Any
    """DeepSpeed's, around a packed policy."""

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def file(self, name: str) -> Path:
        """A file of this attempt, shared by the machine's ranks."""
        return self.place.folder / name

    def plan(self, prompts: Sequence[TrainingPrompt]) -> Plan:
        """How these prompts are shared out among the ranks, the same on each."""
        return plan([prompt.tokens for prompt in prompts], self.world_size, self.run.hardware.tokens_per_device)

    def micro_batches(self, prompts: Sequence[TrainingPrompt]) -> Iterator[MicroBatch]:
        """This rank's share of these prompts. Every rank has as many micro-batches: under ZeRO-3 it holds weights that the
        others wait for."""
        for places in self.plan(prompts).of_rank(self.number):
            mine = [prompts[place] for place in places]
            packed = [(prompt.token_ids, [response.token_ids for response in prompt.responses]) for prompt in mine]
            yield MicroBatch(pack(packed or [self._stand_in()]), mine)

    def _stand_in(self) -> tuple[npt.NDArray[np.int32], list[npt.NDArray[np.int32]]]:
        """Two tokens, so that a rank without prompts has something to run."""
        prompt = self.examples.prompts[0]
        return prompt.token_ids[:1], [prompt.responses[0].token_ids[:1]]

    def log_probs(self, rows: Sequence[int]) -> Array:
        """log pi(y|x) of the responses with these rows by the weights as they are, in nats: the same array on every rank.

        All ranks call this together. No gradients are kept."""
        import torch

        found = torch.zeros(len(self.examples.responses), dtype=torch.float64)  # (R,)
        self.engine.eval()
        with torch.no_grad():
            for packing, prompts in self.micro_batches(of_rows(self.examples, rows)):
                values = self.engine(packing)  # (B,)
                for response, value in zip(MicroBatch(packing, prompts).responses, values.tolist(), strict=False):
                    found[response.row] = value
        self.engine.train()
        found = found.to(self.device)
        torch.distributed.all_reduce(found)  # each row comes from one rank, the others add 0
        values_of_all: Array = found.cpu().numpy()
        return values_of_all[list(rows)]


def of_rows(examples: Examples, rows: Sequence[int]) -> list[TrainingPrompt]:
    """The prompts of the responses with these rows, each with these alone."""
    wanted = set(rows)
    kept = ((prompt, [each for each in prompt.responses if each.row in wanted]) for prompt in examples.prompts)
    return [replace(prompt, responses=tuple(responses)) for prompt, responses in kept if responses]
