"""Judge logits of training responses."""

from prefect import task

import sppo.rank
from sppo.runs import Setup
from sppo.store import Artifact
from sppo.store.artifact import ArtifactFile
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="rank", **HEAVY)
def rank_responses(setup: Setup, judge: Artifact | None, prompts: ArtifactFile, responses: Artifact) -> Artifact:
    """L_ij of every ordered pair of a prompt's responses."""
    return setup.store.build(sppo.rank.step(setup.recipe, setup.hardware, judge, prompts, responses, setup.launch), report)
