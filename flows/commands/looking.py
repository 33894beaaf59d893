"""Commands that start nothing: how far runs are, what artifacts were made from, what recipes and hardware say."""

from typing import Annotated

import typer

from flows.commands.options import Overrides, RecipeName, RunName, StoreUrl

PANEL = "Look"
recipes = typer.Typer(help="What is computed.", no_args_is_help=True)
machines = typer.Typer(help="Where it runs.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `sppo`."""
    for name, command in (("status", status), ("lineage", show_lineage), ("verify", verify)):
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


def verify(run: RunName, store: StoreUrl) -> None:
    """Read and hash every byte of a run's artifacts again. Exit status 1 if any is damaged."""
    from flows.inspection import show_verified
    from flows.terminal import plain_console
    from sppo.store import Store

    if not show_verified(plain_console(), Store(store), run):
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
    """Devices, processes, micro-batch, time-outs."""
    from flows import inspection
    from flows.preparation import HARDWARE
    from flows.terminal import plain_console
    from sppo.hardware import load_hardware

    plain_console().print(inspection.hardware_values(load_hardware(name, HARDWARE)))
