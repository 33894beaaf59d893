"""Log-probs of held-out answers under another policy."""

from prefect import task

import sppo.score
from sppo.runs import Setup
from sppo.store import Artifact
from sppo.store.artifact import ArtifactFile
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="score", **HEAVY)
def score_answers(setup: Setup, policy: Artifact, prompts: ArtifactFile, answers: Artifact) -> Artifact:
    """log pi_s of pi_t's held-out answers, token by token: what the KL divergence of pi_t from pi_s is estimated from."""
    return sppo.score.build(setup.store, setup.recipe, setup.hardware, policy, prompts, answers, report, setup.launch)
