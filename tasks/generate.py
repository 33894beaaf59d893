"""Training responses, and the held-out ones of the same policy."""

from collections.abc import Sequence

from prefect import task

import sppo.generate
from sppo.generate import Draw
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="generate", **HEAVY)
def generate_responses(setup: Setup, policy: Artifact, draws: Sequence[Draw]) -> list[Artifact]:
    """y_1..y_K ~ pi_t(.|x) for each set of prompts, with one engine load for all of them."""
    return sppo.generate.build(setup.store, setup.recipe, setup.hardware, policy, draws, report, setup.launch)
