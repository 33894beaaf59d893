"""Prompts into portions."""

from prefect import task

import sppo.split
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="split", **LIGHT)
def split_prompts(setup: Setup, policy: Artifact) -> Artifact:
    """Disjoint portions of the prompts, one an iteration, and held-out ones, rendered for the policy."""
    return setup.store.build(sppo.split.step(setup.recipe, policy), report)
