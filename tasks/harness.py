"""Tasks of lm-evaluation-harness."""

from prefect import task

import sppo.harness
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="harness", **HEAVY)
def run_harness(setup: Setup, policy: Artifact | None) -> list[Artifact]:
    """Scores of a policy: an artifact for each entry of the recipe's `harness`."""
    return sppo.harness.build(setup.store, setup.recipe, setup.hardware, policy, report, setup.launch)
