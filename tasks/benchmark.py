"""The benchmarks' numbers in one place."""

from collections.abc import Mapping, Sequence

from prefect import task

import sppo.benchmark
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.options import LIGHT
from tasks.reporting import report


@task(name="benchmark", **LIGHT)
def gather_benchmarks(
    setup: Setup, iteration: int, alpaca: Mapping[int, Artifact], harness: Mapping[int, Sequence[Artifact]]
) -> Artifact:
    """Scores of pi_i by i, and what changed from pi_0 and pi_(t-1) to pi_t."""
    return setup.store.build(sppo.benchmark.step(setup.recipe, iteration, alpaca, harness), report)
