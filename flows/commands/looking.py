"""Commands that start nothing: how far runs are, what artifacts were made from, what recipes and hardware say."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import HardwareName, Overrides, RecipeName, RunName, StoreUrl

PANEL = "Look"
recipes = typer.Typer(help="What is computed.", no_args_is_help=True)
machines = typer.Typer(help="Where it runs.", no_args_is_help=True)


class Rule(StrEnum):
    """From logits to probabilities."""

    PAIRWISE = "pairwise"
    BRADLEY_TERRY = "bradley_terry"
    PROB_MEAN = "prob_mean"


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `sppo`."""
    commands: dict[str, Callable[..., None]] = {
        "status": status,
        "lineage": show_lineage,
        "verify": verify,
        "estimate": estimate,
        "preferences": show_preferences,
        "plan": show_plan,
    }
    for name, command in commands.items():
        app.command(name, rich_help_panel=PANEL)(command)
    app.add_typer(recipes, name="recipe", rich_help_panel=PANEL)
    app.add_typer(machines, name="hardware", rich_help_panel=PANEL)


def status(run: RunName, store: StoreUrl) -> None:
    """How far a run is: each stage done, running where, or failed why; what a resume would do; what it has cost."""
    from flows.status import show_status
    from flows.terminal import plain_console
    from sppo.store import Store

    show_status(plain_console(), Store(store), run)


def show_lineage(
    reference: Annotated[str, typer.Argument(metavar="RUN|STAGE/DIGITS", help="A run, or the start of an artifact's name.")],
    store: StoreUrl,
    iteration: Annotated[int | None, typer.Argument(metavar="ITERATION", help="Of a run; the last finished one.")] = None,
    stage: Annotated[str | None, typer.Argument(metavar="STAGE", help="Such as train or sample.0; the evaluation.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Also what each read of the recipe.")] = False,
) -> None:
    """What an artifact was made from, down to the base policy and the sources outside the store."""
    from flows.inspection import lineage_tree
    from flows.terminal import plain_console
    from sppo.lineage import lineage, manifests_in, named_artifact
    from sppo.store import Store

    opened = Store(store)
    origin = lineage(named_artifact(opened, reference, iteration, stage), manifests_in(opened))
    plain_console().print(lineage_tree(origin, recipe))


def verify(
    run: RunName,
    store: StoreUrl,
    mend: Annotated[bool, typer.Option("--mend", help="Delete what is damaged: a resume makes only that anew.")] = False,
) -> None:
    """Read and hash every byte of a run's records and artifacts again. Exit status 1 if any is damaged and stays so."""
    from flows.audit import show_verified
    from flows.terminal import plain_console
    from sppo.store import Store

    if not show_verified(plain_console(), Store(store), run, mend):
        raise typer.Exit(1)


def estimate(
    run: RunName,
    store: StoreUrl,
    iteration: Annotated[
        int | None, typer.Argument(metavar="ITERATION", help="The last finished one, if none is given.")
    ] = None,
    rule: Annotated[list[Rule] | None, typer.Option("--rule", help="One or more, instead of the run's own.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Logits are divided by it.")] = None,
    self_match: Annotated[
        bool | None, typer.Option("--self-match/--no-self-match", help="Whether a match against itself counts, as 1/2.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All rules side by side; so it is if nothing else is asked.")
    ] = False,
) -> None:
    """What another estimator would make of a run's judgements: which choices and how much of the targets change. No GPU."""
    from flows.estimation import show_estimates
    from flows.terminal import plain_console
    from sppo.store import Store

    rules = [each.value for each in rule or []]
    show_estimates(plain_console(), Store(store), run, iteration, rules, temperature, self_match, compare)


def show_preferences(
    run: Annotated[str, typer.Argument(metavar="RUN|rank/DIGITS", help="A run, or the start of a rank artifact's name.")],
    store: StoreUrl,
    iteration: Annotated[int | None, typer.Argument(metavar="ITERATION", help="Of a run; the last finished one.")] = None,
) -> None:
    """What the judge's preferences say: position bias, cycles, length, agreement, calibration, and the game they make."""
    from flows import preferences
    from flows.terminal import plain_console
    from sppo.store import Store

    preferences.show_preferences(plain_console(), Store(store), run, iteration)


def show_plan(
    recipe: RecipeName,
    hardware: HardwareName = "cpu",
    prompts: Annotated[int | None, typer.Option(min=1, help="Of an iteration that are trained on.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Of a prompt, on average.")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, help="Of a response, on average.")] = None,
    config: Annotated[Path | None, typer.Option(help="The policy's config.json, where it cannot be read by its name.")] = None,
    overrides: Overrides = None,
) -> None:
    """What training will take: memory by part, tokens, steps, FLOPs, time. Exit status 1 if it does not fit."""
    from flows import planning
    from flows.terminal import plain_console
    from sppo.plan import Asked

    asked = Asked(prompts, prompt_tokens, response_tokens)
    if not planning.show_plan(plain_console(), recipe, hardware, overrides or [], config, asked):
        raise typer.Exit(1)


@recipes.command("list")
def list_recipes() -> None:
    """The known recipes."""
    from flows import inspection
    from flows.terminal import plain_console

    plain_console().print(inspection.recipe_list())


@recipes.command("show")
def show_recipe(recipe: RecipeName, overrides: Overrides = None) -> None:
    """What will run: every value, and the fingerprint of each stage."""
    from flows import inspection
    from flows.preparation import RECIPES
    from flows.terminal import plain_console
    from sppo.recipe import load_recipe

    loaded = load_recipe(recipe, RECIPES, tuple(overrides or []))
    console = plain_console()
    console.print(inspection.recipe_table(loaded))
    console.print()
    console.print(inspection.stage_plan(loaded))


@recipes.command("diff")
def compare_recipes(
    one: Annotated[str, typer.Argument(metavar="A")], other: Annotated[str, typer.Argument(metavar="B")]
) -> None:
    """What differs between two recipes, and which stages that recomputes."""
    from flows import inspection
    from flows.preparation import RECIPES
    from flows.terminal import plain_console
    from sppo.recipe import load_recipe

    first, second = load_recipe(one, RECIPES), load_recipe(other, RECIPES)
    console = plain_console()
    console.print(inspection.recipe_difference(first, second))
    console.print()
    console.print(inspection.recomputed_stages(first, second))


@machines.command("show")
def show_hardware(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Devices, processes, tokens at once, time-outs."""
    from flows import inspection
    from flows.preparation import HARDWARE
    from flows.terminal import plain_console
    from sppo.hardware import load_hardware

    plain_console().print(inspection.hardware_values(load_hardware(name, HARDWARE)))
