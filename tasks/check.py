"""What an iteration did to its policy's answers."""

from collections.abc import Mapping, Sequence

from prefect import task

import sppo.check
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="check", **LIGHT)
def check_policy(
    setup: Setup,
    samples: Sequence[Artifact],
    duels: Sequence[Sequence[Artifact]],
    scores: Mapping[int, Artifact],
    trained_on: tuple[Artifact, Artifact] | None,
) -> Artifact:
    """Lengths, degeneration and divergence of pi_t's held-out answers, and what the gates say of them."""
    return setup.store.build(sppo.check.step(setup.recipe, samples, duels, scores, trained_on), report)
