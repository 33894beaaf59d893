"""What the server is told for automations and triggers to act on."""

import json
from collections.abc import Sequence

from prefect.events import emit_event

from sppo.runs import Setup
from sppo.store import Artifact

FINISHED = "sppo.iteration.finished"


def announce_iteration(
    setup: Setup,
    iteration: int,
    evaluated: Artifact,
    recipe: str,
    hardware: str,
    store: str,
    overrides: Sequence[str],
    chain: bool,
) -> None:
    """Tell that an iteration has finished, how well, and what the next one would be started with.

    The label `sppo.chain` is what the triggers of prefect.yaml look at: a manual iteration starts no other."""
    report = json.loads(evaluated.text("report.json"))
    rate = report["judges"][0]["against"][0]["win_rate"]
    emit_event(
        event=FINISHED,
        resource={
            "prefect.resource.id": f"sppo.iteration.{setup.run}.{iteration}",
            "prefect.resource.name": f"{setup.run} · iteration {iteration}",
            "sppo.run": setup.run,
            "sppo.iteration": str(iteration),
            "sppo.chain": "true" if chain else "false",
        },
        payload={
            "recipe": recipe,
            "hardware": hardware,
            "run": setup.run,
            "store": store,
            "iteration": iteration,
            "overrides": list(overrides),
            "win_rate": rate["mean"],
            "win_rate_low": rate["low"],
            "win_rate_high": rate["high"],
        },
    )
