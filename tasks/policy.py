"""pi_0."""

from prefect import task

import sppo.policy
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="policy", **HEAVY)
def base_policy(setup: Setup) -> Artifact:
    """pi_0: fetched, or made in the tiny world."""
    return setup.store.build(sppo.policy.step(setup.recipe), report)
