"""What engines load of a trained policy."""

from prefect import task

import sppo.export
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="export", **LIGHT)
def export_policy(setup: Setup, policy: Artifact) -> Artifact:
    """pi_t in the precision of inference; pi_t itself where that is how it is stored."""
    return sppo.export.build(setup.store, setup.recipe, policy, report)
