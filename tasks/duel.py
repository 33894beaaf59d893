"""Policy against policy."""

from collections.abc import Sequence

from prefect import task

import sppo.duel
from sppo.runs import Setup
from sppo.store import Artifact
from sppo.store.artifact import ArtifactFile
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="duel", **HEAVY)
def duel_policies(
    setup: Setup,
    judges: Sequence[Artifact | None],
    prompts: ArtifactFile,
    answers: Artifact,
    earlier_answers: Sequence[Artifact],
) -> list[list[Artifact]]:
    """Judge logits of the newest policy's held-out answers against those of each earlier policy: [judge][policy]."""
    return sppo.duel.build(
        setup.store, setup.recipe, setup.hardware, judges, prompts, answers, earlier_answers, report, setup.launch
    )
