"""Held-out win rates."""

from collections.abc import Sequence

from prefect import task

import sppo.evaluate
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="evaluate", **LIGHT)
def evaluate_policy(setup: Setup, iteration: int, samples: Sequence[Artifact], duels: Sequence[Sequence[Artifact]]) -> Artifact:
    """Win rates of pi_t against every policy before it, with intervals; lengths."""
    return setup.store.build(sppo.evaluate.step(setup.recipe, iteration, samples, duels), report)
