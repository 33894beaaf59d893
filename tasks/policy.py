"""pi_0."""

from prefect import task

import sppo.policy
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import COMMON
from tasks.reporting import report


@task(name="policy", **COMMON)  # beside the judge in a thread, where Prefect could end nothing
def base_policy(setup: Setup) -> Artifact:
    """pi_0: fetched, or made in the tiny world."""
    return sppo.policy.build(setup.store, setup.recipe, report)
