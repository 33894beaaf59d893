"""A run: a name, the recipe it was started with, and for each iteration which artifacts it is made of.

`runs/<name>/recipe.json` is written once, when a run starts. `runs/<name>/iteration-<t>.json` is the small, readable index from
an iteration to its artifacts; `branch.json` says that the first of them are another run's; `latest.json` how the run was last
started (sppo.last_start). None of them makes an artifact exist or not: that is the store's manifest alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from sppo.configuration import parse_json, validate
from sppo.difference import recipe_differences
from sppo.errors import RunError
from sppo.explanation import kind_of
from sppo.hardware import Hardware
from sppo.launch import HERE, Launcher
from sppo.recipe import Recipe
from sppo.store import Artifact, Store
from sppo.store.manifest import SHA256, parse_record
from sppo.store.seal import check_seal, sealed, without_seal

RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Entry(BaseModel):
    """One artifact of an iteration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str = Field(pattern=r"^[a-z][a-z-]{0,40}/[0-9a-f]{64}$")
    """`stage/fingerprint`."""
    digest: str = Field(pattern=SHA256)
    """Of its content."""


class IterationIndex(BaseModel):
    """Iteration t of a run: the artifacts that took it from pi_(t-1) to pi_t, by stage.

    A stage with several artifacts has one entry for each: `sample.<i>` are the held-out responses of pi_i, and
    `duel.<j>.<i>` is pi_t against pi_i under the j-th judge of the evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    recipe: str
    """The recipe's name; its values are in recipe.json."""
    iteration: int = Field(ge=1)
    artifacts: dict[str, Entry]
    shared_with: str | None = None
    """The run that this iteration is of, where it was branched from that; None for a run's own."""

    def opened(self, store: Store, name: str) -> Artifact:
        """The artifact of one entry. Raises RunError if the iteration has none of that name."""
        entry = self.artifacts.get(name)
        if entry is None:
            known = ", ".join(self.artifacts)
            raise RunError(f"iteration {self.iteration} of run {self.run} names no artifact {name!r}; it names {known}")
        return store.open(entry.reference)

    def samples(self, store: Store) -> list[Artifact]:
        """Held-out responses of pi_0 .. pi_t, in that order."""
        return [self.opened(store, f"sample.{number}") for number in range(self.iteration + 1)]


class Branch(BaseModel):
    """Iterations 1 to `at` of a run are those of another run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """The other one."""
    at: int = Field(ge=1)
    policy: Entry
    """What the other run trained in iteration `at`."""
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Setup:
    """Everything a run is about: checked before its first stage, handed to every stage."""

    run: str
    recipe: Recipe
    """Resolved."""
    hardware: Hardware
    store: Store
    launch: Launcher = HERE
    """Who starts the heavy stages' processes, and where."""


def check_run_name(run: str) -> str:
    """The name itself. Raises RunError, saying what is wrong with it."""
    if RUN_NAME.fullmatch(run):
        return run
    other = next((character for character in run if not re.fullmatch("[a-z0-9._-]", character)), run[:1])
    problem = f"it has {len(run)} characters" if len(run) > 63 else f"it has {other!r}"
    if not run:
        problem = "it is empty"
    elif "/" in run or "\\" in run:
        problem = "it holds a slash, which would leave the run's folder"
    elif other == run[0] and other in "-_":
        problem = f"it starts with {other!r}"
    elif run.startswith("."):
        problem = "it starts with a dot, which would leave or hide the run's folder"
    elif run != run.lower():
        problem = f"it has upper case; {run.lower()!r} has none"
    raise RunError(f"run name {run!r}: {problem}; expected 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or a digit")


def recipe_key(run: str) -> str:
    """Where a run's recipe lies in the store."""
    return f"runs/{check_run_name(run)}/recipe.json"


def index_key(run: str, iteration: int) -> str:
    """Where an iteration's index lies in the store."""
    return f"runs/{check_run_name(run)}/iteration-{iteration}.json"


def branch_key(run: str) -> str:
    """Where the record of a run's branching lies in the store."""
    return f"runs/{check_run_name(run)}/branch.json"


def write_iteration(
    setup: Setup,
    iteration: int,
    artifacts: Mapping[str, Artifact | None],
    samples: Sequence[Artifact],
    duels: Sequence[Sequence[Artifact]],
) -> IterationIndex:
    """Replace an iteration's index. A stage without an artifact (a judge that is only a rule) is left out.

    samples: held-out responses of pi_0 .. pi_t. duels: [judge][earlier policy], pi_t against each."""
    named = {name: made for name, made in artifacts.items() if made is not None}
    named |= {f"sample.{number}": sample for number, sample in enumerate(samples)}
    for position, row in enumerate(duels):
        named |= {f"duel.{position}.{against}": duel for against, duel in enumerate(row)}
    entries = {name: Entry(reference=made.reference, digest=made.digest) for name, made in named.items()}
    index = IterationIndex(run=setup.run, recipe=setup.recipe.name, iteration=iteration, artifacts=entries)
    key = index_key(setup.run, iteration)
    setup.store.backend.replace(key, sealed(index, key))
    return index


def find_iteration(store: Store, run: str, iteration: int) -> IterationIndex | None:
    """An iteration's index, or None before the iteration has ended."""
    key = index_key(run, iteration)
    content = store.backend.read(key)
    return None if content is None else parse_record(IterationIndex, content, key)


def read_iteration(store: Store, run: str, iteration: int) -> IterationIndex:
    """An iteration's index. Raises RunError naming the command that makes it."""
    index = find_iteration(store, run, iteration)
    if index is None:
        recipe = find_recipe(store, run)
        name = recipe.name if recipe else "RECIPE"
        raise RunError(
            f"run {run} has no iteration {iteration} in the store at {store.url}; "
            f"make it with: sppo run {name} --run {run} --iterations {iteration} --store {store.url}"
        )
    return index


def check_reached(store: Store, run: str, iteration: int) -> None:
    """Raises RunError unless the iteration before this one has ended, and for one that is another run's."""
    branch = find_branch(store, run)
    if branch is not None and iteration <= branch.at:
        raise RunError(
            f"iteration {iteration} of run {run} is that of run {branch.run}, which it branched from; "
            f"expected {branch.at + 1} or later"
        )
    if iteration > 1:
        read_iteration(store, run, iteration - 1)


def policy_before(store: Store, run: str, iteration: int, base: Artifact) -> Artifact:
    """pi_(t-1), which iteration t starts from: the base policy, or what the iteration before trained.

    Raises RunError if the iteration before has not ended."""
    return base if iteration == 1 else read_iteration(store, run, iteration - 1).opened(store, "train")


def samples_before(store: Store, run: str, iteration: int) -> list[Artifact]:
    """Held-out responses of pi_0 .. pi_(t-2): of every policy that iteration t neither starts from nor makes."""
    return [] if iteration == 1 else read_iteration(store, run, iteration - 1).samples(store)[:-1]


def finished_iterations(store: Store, run: str) -> list[IterationIndex]:
    """Indexes of iterations 1, 2, .. up to the first that is missing."""
    indexes: list[IterationIndex] = []
    while (index := find_iteration(store, run, len(indexes) + 1)) is not None:
        indexes.append(index)
    return indexes


def find_branch(store: Store, run: str) -> Branch | None:
    """Where a run branched from another; None for one of its own. Raises RunError if the record of it is lost."""
    key = branch_key(run)
    content = store.backend.read(key)
    if content is not None:
        return parse_record(Branch, content, key)
    first = find_iteration(store, run, 1)
    if first is not None and first.shared_with is not None:
        raise RunError(
            f"{key} is missing, although iteration 1 of run {run} is that of run {first.shared_with}; "
            f"make it again with: sppo branch {first.shared_with} --at T --recipe RECIPE --run {run}"
        )
    return None


def shared_iterations(store: Store, run: str) -> int:
    """How many of a run's iterations, the first ones, are another run's."""
    branch = find_branch(store, run)
    return 0 if branch is None else branch.at


def utc_now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_recipe(store: Store, run: str) -> Recipe | None:
    """The resolved recipe that a run was started with, or None if no such run was."""
    content = store.backend.read(recipe_key(run))
    if content is None:
        return None
    values = _json_values(without_seal(content), run)
    check_seal(content, recipe_key(run))
    try:
        return validate(Recipe, values, recipe_key(run), RunError)
    except RunError as problem:
        mend = f"it was changed by hand, or written by another version: delete {recipe_key(run)} and start the run again"
        raise RunError(f"{problem}; {mend}") from problem


def read_recipe(store: Store, run: str) -> Recipe:
    """The resolved recipe that a run was started with. Raises RunError if no such run was."""
    recipe = find_recipe(store, run)
    if recipe is None:
        started = ", ".join(run_names(store)) or "none"
        raise RunError(f"no run {run!r} in the store at {store.url}; runs there: {started}")
    return recipe


def run_names(store: Store) -> list[str]:
    """Names of the runs that were started in a store, sorted."""
    return sorted({key.split("/")[1] for key in store.backend.list("runs") if key.endswith("/recipe.json")})


def start(store: Store, run: str, recipe: Recipe, resolve: Callable[[Recipe], Recipe]) -> Recipe:
    """The recipe of a run: resolved and written down when the run starts, read back ever after.

    What was left open (engine `auto`, a branch for a revision) keeps the meaning it had on the first day.
    Raises RunError if the run was started with other values."""
    started = find_recipe(store, run)
    if started is None:
        if find_branch(store, run) is not None:
            raise RunError(f"run {run} was being branched from another and is not whole; give the `sppo branch` command again")
        resolved = resolve(recipe)
        if store.backend.create(recipe_key(run), sealed(resolved, recipe_key(run))):
            return resolved
        started = read_recipe(store, run)
    differences = recipe_differences(started, recipe, left_open=True)
    if differences:
        shown = "; ".join(f"{path} {before!r}, now {after!r}" for path, (before, after) in differences.items())
        raise RunError(
            f"run {run} was started with another recipe: {shown}; "
            "choose another run name: what the two have in common is not computed again"
        )
    return started


def _json_values(content: bytes, run: str) -> dict[str, object]:
    try:
        values = parse_json(content)
    except ValueError as problem:
        raise RunError(f"{recipe_key(run)} is not JSON: {problem}; delete it and start the run again") from problem
    if not isinstance(values, dict):
        raise RunError(f"{recipe_key(run)} holds {kind_of(values)}; expected a recipe: delete it and start the run again")
    return values
