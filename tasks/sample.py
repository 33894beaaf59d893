"""Held-out responses of the policy just trained."""

from collections.abc import Sequence

from prefect import task

import sppo.generate
from sppo.generate import Draw
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="sample", **HEAVY)
def sample_answers(setup: Setup, policy: Artifact, draws: Sequence[Draw]) -> list[Artifact]:
    """Held-out answers of pi_t, and from the same engine load the training responses that iteration t + 1 starts with."""
    return sppo.generate.build(setup.store, setup.recipe, setup.hardware, policy, draws, report, setup.launch)
