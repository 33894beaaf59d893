"""Learning rate and number of steps. The schedule's horizon and the stop are two numbers: published weights were trained on
the first steps of a longer schedule."""

import math
from dataclasses import dataclass
from typing import assert_never

from sppo.recipe import Training
from sppo.train.batches import steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """Steps of one iteration's training."""

    steps_per_epoch: int
    horizon: int
    """Steps of the learning-rate schedule."""
    stop: int
    """Steps that are run."""
    warmup: int


def schedule_of(training: Training, prompts: int) -> Schedule:
    """Steps for a number of usable prompts; the warm-up is a share of the horizon, rounded up."""
    each = steps_per_epoch(prompts, training.global_batch)
    horizon = each * training.schedule_epochs
    return Schedule(each, horizon, each * training.stop_epochs, math.ceil(horizon * training.warmup_ratio))


def learning_rate(step: int, schedule: Schedule, training: Training) -> float:
    """Learning rate of a step, counted from 0, per unit of RMSprop's or AdamW's direction.

    As in the released code, the first step of a warm-up has rate 0: it only fills the optimizer's running averages, which
    start without bias correction."""
    if step < schedule.warmup:
        return training.learning_rate * step / schedule.warmup
    match training.schedule:
        case "constant":
            return training.learning_rate
        case "linear":
            left = schedule.horizon - step
            return training.learning_rate * left / max(1, schedule.horizon - schedule.warmup)
        case other:
            assert_never(other)
