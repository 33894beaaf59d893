"""What of a store somebody may still want: found from the records of runs and publications, along what each was made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sppo.errors import StoreError
from sppo.last_start import latest_key
from sppo.lineage import manifests_in
from sppo.overruling import Overruling
from sppo.publication import Publication
from sppo.recipe import Recipe, StoredModel
from sppo.runs import Branch, IterationIndex, find_branch, find_iteration, index_key, read_recipe, run_names
from sppo.stages import recipe_part, stages_of
from sppo.store import Manifest, Store
from sppo.store.manifest import parse_record
from sppo.store.parallel import in_parallel

AT_ONCE = 32


@dataclass(frozen=True)
class Reach:
    """What is reached now, and what unfinished runs may come to reach."""

    references: frozenset[str]
    open_recipes: tuple[Mapping[str, Mapping[str, object]], ...]
    """Of runs that may go on: what each stage reads of the recipe."""

    def wants(self, manifest: Manifest) -> bool:
        """Whether an unfinished run may take this artifact for its own: it was made by values that are the run's."""
        if manifest.stage == "judge":  # a recipe has several, and their parts do not say which
            return bool(self.open_recipes)
        asked = (parts.get(manifest.stage, {}) for parts in self.open_recipes)
        return any(parts and _agree(parts, manifest.recipe) for parts in asked)


def _agree(asked: Mapping[str, object], found: Mapping[str, object]) -> bool:
    """Whether values are of a recipe part; a stage may have narrowed a list to the one that it reads."""
    return all(path in found and _is_or_is_of(found[path], value) for path, value in json.loads(json.dumps(asked)).items())


def _is_or_is_of(found: object, asked: object) -> bool:
    if found == asked or found is None:
        return True
    if not isinstance(asked, list):
        return False
    return found in asked or (isinstance(found, list) and all(each in asked for each in found))


def find_reach(store: Store, open_for_s: float, keep: Sequence[str] = ()) -> Reach:
    """Read every record of runs and publications, and follow the manifests from there.

    open_for_s: a run that was started no longer ago than this may be at work, finished or not. Raises StoreError if any record
    cannot be read: nobody could say what it reaches."""
    roots, recipes = set(keep), []
    for run in run_names(store):
        recipe = read_recipe(store, run)
        source = recipe.policy.source
        roots |= {source.artifact} if isinstance(source, StoredModel) else set()
        finished = _roots_of_run(store, run, roots)
        if finished < recipe.iterations or _may_be_at_work(store, run, finished, open_for_s):
            recipes.append(recipe)
    for key in record_keys(store):
        roots |= _named_by(store, key)
    return Reach(frozenset(_closure(store, roots)), tuple(_parts(recipe) for recipe in recipes))


def _may_be_at_work(store: Store, run: str, finished: int, open_for_s: float) -> bool:
    """Whether a finished run was started of late, or again after its last iteration ended: it may be making that anew."""
    started, ended = store.backend.written(latest_key(run)), store.backend.written(index_key(run, finished))
    return started is not None and (started.age < open_for_s or ended is None or started.at > ended.at)


def record_keys(store: Store) -> list[str]:
    """Keys of all records by which something is reached."""
    listed = [*store.backend.list("runs"), *store.backend.list("published")]
    return sorted(key for key in listed if key.endswith(".json"))


def marks(store: Store) -> dict[str, float]:
    """What tells that something else may be reached: every record, and of last starts when they were written. A run that begins
    again writes that one before it takes anything up, and what it takes up it may name in records that are there already."""
    keys = record_keys(store)
    starts = [key for key in keys if key.endswith("/latest.json")]
    written = zip(starts, in_parallel(store.backend.written, starts, AT_ONCE), strict=True)
    return dict.fromkeys(keys, 0.0) | {key: each.at for key, each in written if each is not None}


def _roots_of_run(store: Store, run: str, roots: set[str]) -> int:
    """Adds what a run's iterations name, asked for one by one: no listing is believed. How many there are."""
    number = 0
    while (index := find_iteration(store, run, number + 1)) is not None:
        roots |= {entry.reference for entry in index.artifacts.values()}
        number += 1
    branch = find_branch(store, run)
    roots |= set() if branch is None else {branch.policy.reference}
    return number


def _named_by(store: Store, key: str) -> set[str]:
    """What one record names."""
    content = store.backend.read(key)
    name = key.rsplit("/", 1)[1]
    if content is None or name in ("recipe.json", "latest.json"):
        return set()
    if key.startswith("published/"):
        return {parse_record(Publication, content, key).policy.reference}
    if name == "branch.json":
        return {parse_record(Branch, content, key).policy.reference}
    if name.endswith("-overruled.json"):
        return {parse_record(Overruling, content, key).check.reference}
    if name.startswith("iteration-"):
        return {entry.reference for entry in parse_record(IterationIndex, content, key).artifacts.values()}
    raise StoreError(
        f"{key} is no record that is known here, so nobody can say what it reaches; expected those of this version"
    )


def _closure(store: Store, roots: set[str]) -> set[str]:
    """The roots and all that they were made from. What is not in the store any more leads nowhere."""
    seen, waiting = set(roots), sorted(roots)
    while waiting:
        found = in_parallel(manifests_in(store), waiting, AT_ONCE)
        sources = {source for manifest in found if manifest is not None for source in manifest.made_from}
        waiting = sorted(sources - seen)
        seen |= sources
    return seen


def _parts(recipe: Recipe) -> dict[str, dict[str, object]]:
    return {stage.name: recipe_part(stage.name, recipe) for stage in stages_of(recipe)}
