"""What the commands show that start nothing: recipes, hardware, how far a run is, whether it is still intact."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.preparation import HARDWARE, RECIPES
from sppo.hardware import Hardware, load_hardware
from sppo.recipe import Recipe, load_recipe, recipe_names
from sppo.runs import check_run_name, flattened, read_recipe, recipe_differences
from sppo.stages import STAGES, plan_fingerprints
from sppo.store import Store
from sppo.verify import Verified, verify_run

if TYPE_CHECKING:
    from flows.survey import IterationState

SHOWN_DIGITS = 12


def recipe_list() -> RenderableType:
    """Each known recipe, with its policy and judge."""
    table = _table("recipe", "policy", "judge", "iterations", "eta")
    for name in recipe_names(RECIPES):
        recipe = load_recipe(name, RECIPES)
        policy = getattr(recipe.policy.source, "model", recipe.policy.source.kind)
        judge = f"{recipe.judge.kind}"
        table.add_row(name, policy, judge, str(recipe.iterations), f"{recipe.training.eta:g}")
    return table


def recipe_values(recipe: Recipe) -> RenderableType:
    """Every value of a recipe, grouped as in its file."""
    table = _table("", "value")
    for group, value in recipe.model_dump(mode="json").items():
        values = flattened(value)
        if list(values) == [""]:
            table.add_row(Text(group, "bold"), _value(value))
            continue
        table.add_row(Text(group, "bold"), "")
        for path, inner in values.items():
            table.add_row(f"  {path}", _value(inner))
    return _titled(f"recipe {recipe.name}: what will be computed", table)


def stage_plan(recipe: Recipe) -> RenderableType:
    """The fingerprint each stage has before anything has run, and what it reads."""
    table = _table("stage", "plan", "after", "reads")
    for name, fingerprint in plan_fingerprints(recipe).items():
        stage = STAGES[name]
        table.add_row(name, fingerprint[:SHOWN_DIGITS], " ".join(stage.after), " ".join(stage.reads))
    return _titled("stages: equal plans compute the same", table)


def recipe_difference(one: Recipe, other: Recipe) -> RenderableType:
    """What differs between two recipes."""
    table = _table("value", one.name, other.name)
    for path, (before, after) in recipe_differences(one, other).items():
        if path != "name":
            table.add_row(path, _value(before), _value(after))
    return _titled("what differs", table)


def recomputed_stages(one: Recipe, other: Recipe) -> RenderableType:
    """Which stages the difference makes new, and which are shared."""
    before, after = plan_fingerprints(one), plan_fingerprints(other)
    changed = [stage for stage in before if before[stage] != after[stage]]
    shared = [stage for stage in before if before[stage] == after[stage]]
    return Text(f"recomputed  {' '.join(changed) or 'nothing'}\nshared      {' '.join(shared) or 'nothing'}")


def hardware_values(hardware: Hardware) -> RenderableType:
    """Every value of a hardware file."""
    table = _table("", "value")
    for path, value in flattened(hardware.model_dump(mode="json")).items():
        table.add_row(path, _value(value))
    return _titled(f"hardware {hardware.name}: where it runs; changes no result and no fingerprint", table)


def run_states(store: Store, run: str) -> tuple[Recipe, list["IterationState"]]:
    """How far a run is. Raises RunError if no such run was started."""
    from flows.survey import survey

    recipe = read_recipe(store, check_run_name(run))
    return recipe, survey(store.url, recipe, load_hardware("cpu", HARDWARE))


def state_table(recipe: Recipe, state: "IterationState") -> RenderableType:
    """An iteration's stages."""
    table = _table("stage", "fingerprint", "state", "seconds")
    seen: set[str] = set()
    for stage in state.stages:
        if stage.fingerprint in seen:
            continue
        seen.add(stage.fingerprint)
        waiting = f"{stage.parts} parts done" if stage.parts else "not begun"
        said = Text("committed", "green") if stage.committed else Text(waiting, "yellow")
        table.add_row(stage.stage, stage.fingerprint[:SHOWN_DIGITS], said, f"{stage.seconds:.1f}" if stage.committed else "")
    return _titled(f"iteration {state.iteration} of {recipe.iterations}", table)


def show_status(console: Console, store: Store, run: str) -> None:
    """Each iteration begun, stage by stage."""
    recipe, states = run_states(store, run)
    for state in states:
        console.print(state_table(recipe, state))
    finished = sum(state.finished for state in states)
    console.print(Text(f"run {run}, recipe {recipe.name}: {finished} of {recipe.iterations} iterations finished"))


def show_verified(console: Console, store: Store, run: str) -> bool:
    """Each artifact of a run, read and hashed again; whether all is well."""
    verified = verify_run(store, check_run_name(run))
    table = _table("artifact", "files", "bytes", "state")
    for each in verified:
        said = Text("as committed", "green") if not each.problem else Text(each.problem, "red")
        table.add_row(each.reference[: each.reference.index("/") + 1 + SHOWN_DIGITS], str(each.files), str(each.size), said)
    console.print(_titled(f"run {run}: every byte read and hashed again", table))
    bad = _bad(verified)
    console.print(Text(f"{len(verified)} artifacts, {len(bad)} damaged"))
    return not bad


def _bad(verified: Sequence[Verified]) -> list[Verified]:
    return [each for each in verified if each.problem]


def _value(value: object) -> Text:
    if isinstance(value, list):
        return Text(" ".join(str(each) for each in value) or "-")
    if isinstance(value, bool):
        return Text("true" if value else "false")
    return Text("-" if value is None else str(value))


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(title, "bold"), table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table
