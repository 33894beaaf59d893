"""Commands that start runs, go on with them, and hand on what they trained."""

import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import HardwareName, NoGate, Overrides, RecipeName, RunName, StoreUrl

PANEL = "Run"


class StartFrom(StrEnum):
    """Where pi_0 comes from."""

    BASE = "base"
    PUBLISHED = "published"


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `sppo`."""
    for name, command in (
        ("run", start_run),
        ("resume", resume),
        ("branch", branch_run),
        ("evaluate", evaluate),
        ("publish", publish_policy),
    ):
        app.command(name, rich_help_panel=PANEL)(command)


def start_run(
    recipe: RecipeName,
    store: StoreUrl,
    iterations: Annotated[int | None, typer.Option(help="How many, instead of the recipe's.")] = None,
    hardware: HardwareName = "cpu",
    run: Annotated[str | None, typer.Option(help="Name of the run; the recipe's, if none is given.")] = None,
    start: Annotated[StartFrom, typer.Option(help="The recipe's policy, or the last one published.")] = StartFrom.BASE,
    no_gate: NoGate = False,
    overrides: Overrides = None,
) -> None:
    """Run SPPO iterations here and now, and show whether the policy got better. What is done already is not done again."""
    from flows.local_run import run_here

    name = run or default_run_name(recipe, overrides or [])
    run_here(recipe, hardware, name, store, iterations, overrides or [], start.value, no_gate)


def resume(
    run: RunName,
    store: StoreUrl,
    hardware: Annotated[str | None, typer.Option(help="Instead of that of the last start.")] = None,
    iterations: Annotated[int | None, typer.Option(help="How many, instead of those of the last start.")] = None,
    on_server: Annotated[bool, typer.Option("--on-server", help="Let the deployment's workers do it.")] = False,
    no_gate: NoGate = False,
) -> None:
    """Go on with a run, with the recipe it was started with: here, or where its last flow run came from."""
    if on_server:
        from flows.resumption import resume_on_server
        from flows.terminal import plain_console

        plain_console().print(resume_on_server(run), markup=False, soft_wrap=True)
        return
    from flows.local_run import resume_here

    resume_here(run, store, hardware, iterations, no_gate)


def branch_run(
    source: RunName,
    store: StoreUrl,
    at: Annotated[int, typer.Option("--at", metavar="T", help="The last iteration that both runs share.")],
    recipe: Annotated[str, typer.Option(help="What the later iterations follow: a recipe's name or path.")],
    run: Annotated[str, typer.Option(help="Name of the new run.")],
    overrides: Overrides = None,
) -> None:
    """Start a run that shares another's first iterations and goes on with another recipe. Says how to continue it."""
    import sppo.resolve
    from flows.preparation import RECIPES
    from flows.presentation import program
    from flows.terminal import plain_console
    from sppo.branch import branch
    from sppo.last_start import find_last_start
    from sppo.recipe import load_recipe
    from sppo.store import Store

    opened = Store(store)
    asked = load_recipe(recipe, RECIPES, tuple(overrides or []))
    made = branch(opened, source, at, asked, run, lambda left_open: sppo.resolve.resolve(left_open, opened))
    last = find_last_start(opened, source)
    hardware = last.hardware if last else "cpu"
    console = plain_console()
    shared = f"iteration{'s' * (made.at > 1)} {' to '.join(str(number) for number in sorted({1, made.at}))}"
    console.print(f"run {run} shares {shared} with run {made.run}, up to {made.policy.reference[:18]}", markup=False)
    command = shlex.join([program(), "resume", run, "--store", store, "--hardware", hardware])
    console.print(f"next     {command}", markup=False, soft_wrap=True)


def evaluate(
    store: StoreUrl,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name of a run, if it is a run's policies.")] = None,
    iteration: Annotated[int | None, typer.Option(help="Which one; all finished ones, if none is given.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Of --model: its prompts, judges and sampling.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="FOLDER|OWNER/NAME", help="In place of a run; once or several times.")
    ] = None,
    hardware: HardwareName = "cpu",
    overrides: Overrides = None,
) -> None:
    """Evaluate what a run has trained, again or with other values under `evaluation`; or any models, without a run."""
    from flows.local_run import evaluate_here

    evaluate_here(hardware, store, run, iteration, recipe, models or [], overrides or [])


def publish_policy(
    run: RunName,
    store: StoreUrl,
    iteration: Annotated[int | None, typer.Option(help="Which one; the last finished one, if none is given.")] = None,
    name: Annotated[str | None, typer.Option(help="To publish under; the recipe's, if none is given.")] = None,
) -> None:
    """Publish what a run has trained: runs with `--start published` begin from the last policy published under their recipe."""
    from flows.terminal import plain_console
    from sppo.publication import publish
    from sppo.store import Store

    made = publish(Store(store), run, iteration, name)
    said = f"published {made.name} number {made.number}: iteration {made.iteration} of run {made.run}, {made.policy.reference}"
    plain_console().print(said, markup=False, soft_wrap=True)


def default_run_name(recipe: str, overrides: list[str]) -> str:
    """The recipe's name; with other values, also six digits of them, so that the recipe's own run is left alone."""
    from sppo.fingerprint import digest_of

    name = re.sub(r"[^a-z0-9._-]", "-", Path(recipe).stem.lower())[:50]
    return f"{name}-{digest_of(sorted(overrides))[:6]}" if overrides else name
