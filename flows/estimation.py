"""What `sppo estimate` shows: other estimators of a finished iteration, side by side with the one that it was trained with."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from typing import get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.preparation import RECIPES
from flows.presentation import program
from sppo.configuration import named_file, validate
from sppo.difference import recipe_differences
from sppo.errors import RecipeError, RunError
from sppo.estimate import Rule
from sppo.last_start import find_last_start
from sppo.recipe import Estimator, Recipe, load_recipe
from sppo.reestimate import Change, Reestimate, Reestimates, reestimate
from sppo.runs import IterationIndex, finished_iterations, read_iteration, read_recipe
from sppo.store import Store

RULES = get_args(Rule)

Cell = Callable[[Change], str]


def show_estimates(
    console: Console,
    store: Store,
    run: str,
    iteration: int | None,
    rules: Sequence[str],
    temperature: float | None,
    self_match: bool | None,
    side_by_side: bool,
) -> None:
    """Re-estimate and print. Without rules: the run's own with what else is asked for; if nothing is, all of them.

    Raises RunError for a run without such an iteration."""
    recipe = read_recipe(store, run)
    index = _index(store, run, iteration)
    changed = temperature is not None or self_match is not None
    if side_by_side or not (rules or changed):
        rules = RULES
    estimators = _estimators(recipe.estimator, rules or (recipe.estimator.rule,), temperature, self_match)
    found = reestimate(store, recipe, index, estimators)
    console.print(
        Text(f"run {run}, iteration {index.iteration}: {found.prompts:,} prompts, {found.responses:,} responses", "bold")
    )
    console.print(_table(found))
    console.print(Text(f"read and looked at the texts in {found.reading_seconds:.1f} s; nothing was judged or written", "dim"))
    for other in found.others:
        if other.estimator != recipe.estimator:
            console.print(_next(store, run, index.iteration, recipe, other), markup=False, soft_wrap=True)


def _index(store: Store, run: str, iteration: int | None) -> IterationIndex:
    if iteration is not None:
        return read_iteration(store, run, iteration)
    finished = finished_iterations(store, run)
    if not finished:
        raise RunError(
            f"run {run} has no finished iteration in the store at {store.url}; expected one to estimate again: "
            f"see how far it is with: sppo status {run} --store {store.url}"
        )
    return finished[-1]


def _estimators(own: Estimator, rules: Sequence[str], temperature: float | None, self_match: bool | None) -> list[Estimator]:
    changes: dict[str, object] = {"temperature": temperature, "self_match": self_match}
    values = own.model_dump() | {name: value for name, value in changes.items() if value is not None}
    made = [validate(Estimator, values | {"rule": rule}, "estimator", RecipeError) for rule in dict.fromkeys(rules)]
    return [each for each in made if each != own] or made[:1]


def _table(found: Reestimates) -> Table:
    """A column for the run's own targets, and one for each other estimator."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("")
    table.add_column("this run's", justify="right")
    for _ in found.others:
        table.add_column("instead", justify="right")
    eta = found.recipe.training.eta
    estimators = [found.recipe.estimator, *(other.estimator for other in found.others)]
    table.add_row("estimator", *(Text(_words(each), "bold") for each in estimators))
    for name, own, cell in _rows(eta):
        table.add_row(name, own(found.own), *(cell(other.change) for other in found.others))
    table.add_row("logits to targets", "", *(f"{other.seconds:.2f} s" for other in found.others))
    return table


def _rows(eta: float) -> list[tuple[str, Cell, Cell]]:
    """Name, cell of the run's own targets, cell of the others."""

    def nothing(change: Change) -> str:
        return ""

    def shared(count: Callable[[Change], int]) -> Cell:
        return lambda change: f"{count(change):,}  {_percent(count(change), change.shared)}"

    return [
        ("prompts trained on", lambda change: f"{change.prompts:,}", lambda change: f"{change.prompts:,}"),
        ("  came in, fell out", nothing, lambda change: f"+{change.came_in:,}  -{change.fell_out:,}"),
        ("  another best, of those in both", nothing, shared(lambda change: change.another_best)),
        ("  another worst, of those in both", nothing, shared(lambda change: change.another_worst)),
        ("  another pair, of those in both", nothing, shared(lambda change: change.another_pair)),
        ("responses trained on", lambda change: f"{change.responses:,}", lambda change: f"{change.responses:,}"),
        ("change of P, mean", nothing, lambda change: f"{change.mean:.4f}"),
        ("  root mean square", nothing, lambda change: f"{change.rms:.4f}"),
        ("  largest", nothing, lambda change: f"{change.largest:.4f}"),
        ("  correlation", nothing, lambda change: "-" if math.isnan(change.correlation) else f"{change.correlation:.4f}"),
        ("rms of P - 1/2", lambda change: f"{change.rms_after:.4f}", lambda change: f"{change.rms_after:.4f}"),
        ("eta for equal targets", lambda change: f"{eta:g}", lambda change: _eta(change, eta)),
    ]


def _eta(change: Change, eta: float) -> str:
    comparable = change.comparable_eta(eta)
    return "-" if math.isnan(comparable) else f"{comparable:.3g}" if comparable < 1000 else f"{comparable:.0f}"


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:5.1f} %" if of else "    - %"


def _words(estimator: Estimator) -> str:
    said: list[str] = [estimator.rule]
    if estimator.temperature != 1:
        said.append(f"temperature {estimator.temperature:g}")
    if not estimator.self_match:
        said.append("no self-match")
    return ", ".join(said)


def _next(store: Store, run: str, iteration: int, recipe: Recipe, other: Reestimate) -> str:
    """The command of a run that would use it from this iteration on: what comes before `estimate` is not computed again."""
    before, after = recipe.estimator.model_dump(), other.estimator.model_dump()
    values = {f"estimator.{name}": value for name, value in after.items() if value != before[name]}
    eta = _eta(other.change, recipe.training.eta)
    if eta not in ("-", f"{recipe.training.eta:g}"):
        values["training.eta"] = float(eta)
    file, own = _own_settings(recipe)
    name = f"{run[:40]}-{_words(other.estimator).replace(',', '').replace(' ', '-').replace('_', '-')}"
    start = ["run", file, "--run", name]
    last = find_last_start(store, run)
    if last is not None and last.hardware != "cpu":
        start += ["--hardware", last.hardware]
    if iteration > 1:
        start = ["branch", run, "--at", str(iteration - 1), "--recipe", file, "--run", name]
    settings = [f"{key}={_setting(value)}" for key, value in {**own, **values}.items()]
    options = [word for each in settings for word in ("--set", each)]
    return f"next     {shlex.join([program(), *start, '--store', store.url, *options])}"


def _own_settings(recipe: Recipe) -> tuple[str, dict[str, object]]:
    """The recipe's name, and what a run has set otherwise than its file; a file outside the known folder is the person's."""
    if named_file(recipe.name, RECIPES) is None:
        return f"{recipe.name}.yaml", {}
    apart = recipe_differences(recipe, load_recipe(recipe.name, RECIPES), left_open=True)
    values = recipe.model_dump(mode="json")
    settings: dict[str, object] = {}
    for path in apart:
        group, _, rest = path.partition(".")
        key = rest.partition(".")[0]
        settings[f"{group}.{key}" if key else group] = values[group][key] if key else values[group]
    return recipe.name, settings


def _setting(value: object) -> str:
    """As `--set` reads it."""
    return (
        value
        if isinstance(value, str) and value.isidentifier()
        else f"{value:g}"
        if isinstance(value, float)
        else json.dumps(value)
    )
