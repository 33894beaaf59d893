"""A run that shares its first iterations with another: the same artifacts, another recipe from there on.

What an iteration takes from the ones before it must mean the same in both recipes: pi_0 and the split of the prompts, and the
held-out responses and judges by which policies are compared.
"""

from collections.abc import Callable

from sppo.difference import flattened, settled
from sppo.errors import RunError
from sppo.recipe import Recipe
from sppo.runs import (
    Branch,
    branch_key,
    check_run_name,
    find_branch,
    find_iteration,
    find_recipe,
    index_key,
    read_iteration,
    read_recipe,
    recipe_key,
    utc_now,
)
from sppo.stages import STAGES
from sppo.store import Store
from sppo.store.seal import sealed

COMPARED = ("policy", "split", "sample", "duel")
"""Stages whose artifacts of different iterations are read together."""


def branch(store: Store, run: str, at: int, recipe: Recipe, name: str, resolve: Callable[[Recipe], Recipe]) -> Branch:
    """Start run `name`: its iterations 1 .. at are those of `run`, the later ones follow `recipe`.

    What the recipe leaves open is settled as `run` settled it. The recipe is written last, so a run that exists is whole; the
    same branch again changes nothing but records that were lost, which it makes again. Raises RunError for an iteration that
    cannot be shared, a name that is taken, or values that must agree and do not."""
    check_run_name(name)
    started = read_recipe(store, run)
    check_place(store, run, at, recipe, name)
    indexes = [read_iteration(store, run, number) for number in range(1, at + 1)]
    asked = settled(recipe, started)
    check_agreement(run, started, asked, at)
    made = Branch(run=run, at=at, policy=indexes[-1].artifacts["train"], created=utc_now())
    resolved = resolve(asked)
    existing = _existing(store, name, resolved, made)
    if existing is None:
        store.backend.replace(branch_key(name), sealed(made, branch_key(name)))
    for index in indexes:
        copied = index.model_copy(update={"run": name, "shared_with": run})
        key = index_key(name, index.iteration)
        if existing is None or store.backend.read(key) is None:
            store.backend.replace(key, sealed(copied, key))
    if find_recipe(store, name) is None and not store.backend.create(recipe_key(name), sealed(resolved, recipe_key(name))):
        raise RunError(f"run {name} was started by someone else in this moment; choose another name for the branch")
    return existing or made


def check_place(store: Store, run: str, at: int, recipe: Recipe, name: str) -> None:
    """Raises RunError unless something is shared and something is left to do."""
    if at < 1:
        raise RunError(
            f"a branch at iteration {at} shares nothing with run {run}; expected --at 1 or later, "
            f"or a new run: sppo run {recipe.name} --run {name} --store {store.url}"
        )
    if at >= recipe.iterations:
        raise RunError(
            f"recipe {recipe.name} has {recipe.iterations} iterations, so a branch of run {run} at {at} has none of its own; "
            f"expected --at 1 to {recipe.iterations - 1}"
        )


def check_agreement(run: str, started: Recipe, asked: Recipe, at: int) -> None:
    """Raises RunError naming each value that iteration at + 1 needs to be as it was before."""
    before, now = _compared(started), _compared(asked)
    apart = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if apart:
        shown = "; ".join(f"{path} {before.get(path)!r}, now {now.get(path)!r}" for path in apart)
        raise RunError(
            f"iteration {at + 1} would be compared with iterations 1 to {at} of run {run}, which had {shown}; "
            "expected the same pi_0, prompts, seed, held-out sampling and evaluation judges: mend the recipe with --set, "
            "or start a new run"
        )


def _compared(recipe: Recipe) -> dict[str, object]:
    """The values that the stages in COMPARED read, by dotted path."""
    read = {path for stage in COMPARED for path in STAGES[stage].reads}
    values = flattened(recipe.model_dump(mode="json"))
    return {path: value for path, value in values.items() if any(f"{path}.".startswith(f"{each}.") for each in read)}


def _existing(store: Store, name: str, recipe: Recipe, made: Branch) -> Branch | None:
    """The branch of this name, if it is this one and its record is not lost. Raises RunError for another run."""
    there = find_recipe(store, name)
    if there is None or (there == recipe and _lost(store, name, made)):
        return None
    branch = find_branch(store, name)
    if branch is None or there != recipe or branch != made.model_copy(update={"created": branch.created}):
        raise RunError(f"there is a run {name} in the store at {store.url} already; choose another name for the branch")
    return branch


def _lost(store: Store, name: str, made: Branch) -> bool:
    """Whether the run is this very branch by its indexes, and the record that says so is gone."""
    indexes = [find_iteration(store, name, number) for number in range(1, made.at + 2)]
    shared = [index.shared_with if index else made.run for index in indexes[:-1]]
    own = indexes[-1] is None or indexes[-1].shared_with is None
    return store.backend.read(branch_key(name)) is None and any(indexes[:-1]) and shared == [made.run] * made.at and own
