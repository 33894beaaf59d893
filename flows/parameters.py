"""The flows' parameters as the server knows them: names to choose from, patterns, titles and descriptions.

A deployment's form offers what stands here, and the server refuses anything else before a worker is asked for. What a flow
itself accepts is wider, such as the path of a recipe, and is checked by `flows.preparation` with messages of ours.
"""

from collections.abc import Sequence
from datetime import UTC
from typing import Annotated, Any, Literal

from pydantic import Field

from flows.preparation import HARDWARE, RECIPES
from sppo.hardware import hardware_names
from sppo.last_start import remember_start
from sppo.recipe import recipe_names
from sppo.runs import Setup

DATE = "{date}"
NAME = r"[a-z0-9._-]"
CREDENTIALS = r".*://[^/@\s]*@"
"""In a URL: the server keeps and shows every parameter."""


def _told(title: str, description: str, **schema: Any) -> Any:
    """What the JSON schema says, and Python does not check. Prefect sets titles of its own, which only these extras replace."""
    return Field(json_schema_extra={"title": title, "description": description, **schema})


RecipeName = Annotated[
    str, _told("Recipe", "What is computed: a file of deployments/recipes.", enum=list(recipe_names(RECIPES)))
]
HardwareName = Annotated[
    str, _told("Hardware", "Where it runs: a file of deployments/hardware.", enum=list(hardware_names(HARDWARE)))
]
RunName = Annotated[
    str,
    _told(
        "Run",
        "Name of the run, 1 to 63 of a-z, 0-9, '.', '_', '-'. A run of this name is continued.",
        pattern=rf"^[a-z0-9]{NAME}{{0,62}}$",
    ),
]
DatedRunName = Annotated[
    str,
    _told(
        "Run",
        "Name of the run, of a-z, 0-9, '.', '_', '-'. A run of this name is continued; {date} in it becomes the day and minute "
        "for which the flow run was scheduled, so that each firing of a schedule is a run of its own.",
        pattern=rf"^([a-z0-9]|\{{date\}})({NAME}|\{{date\}}){{0,62}}$",
    ),
]
StoreUrl = Annotated[
    str,
    _told(
        "Store",
        "Where artifacts are kept: a folder, s3://bucket/prefix, or block/NAME of a Prefect block. Never with credentials.",
        minLength=1,
        pattern=rf"^(?!{CREDENTIALS})",
    ),
]
Iteration = Annotated[int, _told("Iteration", "t, from 1; the iteration before it must have ended.", minimum=1)]
EvaluatedRun = Annotated[
    str | None, _told("Run", "Whose iterations are evaluated. Not together with models.", pattern=rf"^[a-z0-9]{NAME}{{0,62}}$")
]
RecipeOfModels = Annotated[
    str | None,
    _told(
        "Recipe",
        "For models: its prompts, judges and sampling, and the policy they are compared with.",
        enum=[*recipe_names(RECIPES), None],
    ),
]
Models = Annotated[
    Sequence[str],
    _told(
        "Models",
        "Folders, hub ids such as owner/name@revision, or artifacts of the store, in place of a run.",
        items={"type": "string", "minLength": 1},
    ),
]
IterationOrAll = Annotated[int | None, _told("Iteration", "Which one; every finished one, if none is given.", minimum=1)]
LastIteration = Annotated[int | None, _told("Iterations", "How many; the recipe's number, if none is given.", minimum=1)]
Ahead = Annotated[bool, _told("Draw ahead", "Also draw the next iteration's responses, with the engine that is loaded.")]
Chain = Annotated[bool, _told("Go on", "Start the next iteration when this one has finished.")]
NoGate = Annotated[
    bool, _told("Overrule the gates", "Go on after an iteration that failed its gates; who said so is written down.")
]
Start = Annotated[
    Literal["base", "published"],
    _told("Start from", "The recipe's base policy, or the last policy published under the recipe's name."),
]
Overrides = Annotated[
    Sequence[str],
    _told(
        "Other values",
        "Of the recipe, such as training.eta=4. Never with credentials.",
        items={"type": "string", "pattern": rf"^(?!{CREDENTIALS})[a-z_.0-9]+=."},
    ),
]


def dated(run: str) -> str:
    """A run's name with {date} replaced by when the flow run was scheduled for, UTC, such as 20261122-0300.

    The first schedule counts, also after a retry: a flow run that is retried continues its own run."""
    if DATE not in run:
        return run
    from prefect.runtime import flow_run

    return run.replace(DATE, flow_run.scheduled_start_time.astimezone(UTC).strftime("%Y%m%d-%H%M"))


def dated_run_name() -> str:
    """Name of the flow run that is beginning: that of its run."""
    from prefect.runtime import flow_run

    return dated(str(flow_run.parameters["run"]))


def evaluation_name() -> str:
    """Name of the flow run that evaluates a run, or models."""
    from prefect.runtime import flow_run

    models = flow_run.parameters.get("models") or ()
    return f"{flow_run.parameters.get('run') or ', '.join(models) or 'models'} · evaluation"


def remember(setup: Setup, hardware: str, iterations: int | None) -> None:
    """Write down how a run is started now, unless a flow that runs this one has."""
    from prefect.runtime import flow_run

    if flow_run.parent_flow_run_id is None:
        remember_start(setup, hardware, iterations, started_by())


def started_by() -> str:
    """Who started this flow run, in words."""
    import socket

    from prefect.runtime import deployment, flow_run

    if deployment.id is None:
        return f"sppo on {socket.gethostname()}"
    return f"deployment {flow_run.flow_name}/{deployment.name}, flow run {flow_run.id}"
