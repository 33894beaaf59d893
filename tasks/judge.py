"""The judges."""

from prefect import task

import sppo.judges
from sppo.recipe import Judge
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import HEAVY
from tasks.reporting import report


@task(name="judge", **HEAVY)
def fitted_judge(setup: Setup, judge: Judge) -> Artifact | None:
    """A judge's weights: fetched, or made in the tiny world; None for a judge that has none."""
    return sppo.judges.build(setup.store, judge, setup.recipe, report)
