"""Win probabilities."""

from prefect import task

import sppo.estimate
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="estimate", **LIGHT)
def estimate_targets(setup: Setup, ranked: Artifact, responses: Artifact) -> Artifact:
    """P(y_k > pi_t | x), and which responses are trained on."""
    return setup.store.build(sppo.estimate.step(setup.recipe, ranked, responses), report)
