"""The next policy."""

from prefect import task

import sppo.train
from sppo.runs import Setup
from sppo.store import Artifact
from sppo.store.artifact import ArtifactFile
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="train", **HEAVY)
def train_policy(
    setup: Setup, iteration: int, policy: Artifact, prompts: ArtifactFile, responses: Artifact, targets: Artifact
) -> Artifact:
    """pi_t, trained from pi_(t-1) on the win probabilities of its own responses."""
    step = sppo.train.step(setup.recipe, setup.hardware, iteration, policy, prompts, responses, targets, setup.launch)
    return setup.store.build(step, report)
