"""The order of the prompts, and the global batches. Pure; prompts are known by their position.

A global batch counts prompts. Which prompts form the n-th batch depends on the recipe's seed, the iteration and the epoch
alone: never on the number of ranks or on how micro-batches are packed.
"""

import math
from collections.abc import Sequence

from sppo.fingerprint import seed_of


def epoch_order(prompt_ids: Sequence[str], seed: int, iteration: int, epoch: int) -> list[int]:
    """Positions of the prompts in the order in which one epoch visits them, each once."""
    keys = [seed_of("train", seed, iteration, epoch, prompt_id) for prompt_id in prompt_ids]
    return sorted(range(len(prompt_ids)), key=lambda position: (keys[position], prompt_ids[position]))


def global_batches(order: Sequence[int], global_batch: int) -> list[list[int]]:
    """The batches of an epoch. The last may be short: it is a step too, with its own number of responses as divisor."""
    return [list(order[start : start + global_batch]) for start in range(0, len(order), global_batch)]


def steps_per_epoch(prompts: int, global_batch: int) -> int:
    """Optimizer steps of one epoch, the short last batch included."""
    return math.ceil(prompts / global_batch)
