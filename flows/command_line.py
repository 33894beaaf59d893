"""The command line, `sppo`. Each command imports what it needs when it runs: `sppo --help` answers at once."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from sppo.errors import SppoError

app = typer.Typer(
    help="Self-Play Preference Optimization of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes = typer.Typer(help="What is computed.", no_args_is_help=True)
machines = typer.Typer(help="Where it runs.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")
app.add_typer(machines, name="hardware")

StoreUrl = Annotated[
    str, typer.Option("--store", envvar="SPPO_STORE", help="Where artifacts are kept: a folder, or s3://bucket/prefix.")
]
HardwareName = Annotated[str, typer.Option("--hardware", help="Name of a hardware file, or its path.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value in the recipe.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or the path of a YAML file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]


@app.command("run")
def start_run(
    recipe: RecipeName,
    store: StoreUrl,
    iterations: Annotated[int | None, typer.Option(help="How many, instead of the recipe's.")] = None,
    hardware: HardwareName = "cpu",
    run: Annotated[str | None, typer.Option(help="Name of the run; the recipe's, if none is given.")] = None,
    overrides: Overrides = None,
) -> None:
    """Run SPPO iterations here and now, and show whether the policy got better. What is done already is not done again."""
    from flows.local_run import run_here

    name = run or default_run_name(recipe, overrides or [])
    run_here(recipe, hardware, name, store, iterations, overrides or [])


@app.command("evaluate")
def start_evaluation(
    run: RunName,
    store: StoreUrl,
    iteration: Annotated[int | None, typer.Option(help="Which one; all finished ones, if none is given.")] = None,
    hardware: HardwareName = "cpu",
    overrides: Overrides = None,
) -> None:
    """Evaluate what a run has trained, again or with other values under `evaluation`."""
    from flows.local_run import evaluate_here

    evaluate_here(run, hardware, store, iteration, overrides or [])


@app.command()
def status(run: RunName, store: StoreUrl) -> None:
    """How far a run is: each stage, its fingerprint, whether it is committed, chunks done."""
    from flows.inspection import show_status
    from flows.terminal import plain_console
    from sppo.store import Store

    show_status(plain_console(), Store(store), run)


@app.command()
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
    console.print(inspection.recipe_values(loaded))
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


def default_run_name(recipe: str, overrides: list[str]) -> str:
    """The recipe's name; with other values, also six digits of them, so that the recipe's own run is left alone."""
    from sppo.fingerprint import digest_of

    name = re.sub(r"[^a-z0-9._-]", "-", Path(recipe).stem.lower())[:50]
    return f"{name}-{digest_of(sorted(overrides))[:6]}" if overrides else name


def main() -> None:
    """Entry point: an error of ours is its message and exit status 2, never a traceback."""
    try:
        app()
    except SppoError as error:
        sys.stderr.write(f"sppo: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
