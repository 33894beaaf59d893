"""In which values two recipes differ, and what a recipe leaves open until a run starts."""

import re
from collections.abc import Mapping
from typing import Any

from sppo.configuration import validate
from sppo.errors import RecipeError
from sppo.recipe import Recipe

COMMIT = re.compile(r"^[0-9a-f]{40}$")
STABLE = re.compile(r"^[0-9a-f]{40}([0-9a-f]{24})?$")
"""A commit, or a sha256."""


def recipe_differences(one: Recipe, other: Recipe, left_open: bool = False) -> dict[str, tuple[object, object]]:
    """Values in which two recipes differ, by dotted path; with `left_open`, values that `other` leaves open agree with any."""
    ones, others = _values(one), _values(other)
    return {
        path: (ones.get(path), others.get(path))
        for path in {**ones, **others}
        if ones.get(path) != others.get(path) and not (left_open and _resolves(path, ones, others))
    }


def settled(asked: Recipe, started: Recipe) -> Recipe:
    """A recipe with what it leaves open as another run settled it: the same engine, commits and content."""
    values: dict[str, Any] = asked.model_dump(mode="json")
    before, now = _values(started), _values(asked)
    for path in now:
        if before.get(path) != now[path] and _resolves(path, before, now):
            *parents, last = path.split(".")
            place: Any = values
            for parent in parents:
                place = place[int(parent)] if isinstance(place, list) else place[parent]
            place[last] = before[path]
    return validate(Recipe, values, f"recipe {asked.name}", RecipeError)


def _values(recipe: Recipe) -> dict[str, object]:
    return flattened(recipe.model_dump(mode="json"))


def _resolves(path: str, started: Mapping[str, object], asked: Mapping[str, object]) -> bool:
    """Whether what was asked for leaves open what a run settled on: an engine, a branch, a dataset's commit, a digest."""
    if path not in started or path not in asked:
        return False
    if path == "generation.engine":
        return asked[path] == "auto"
    of, _, last = path.rpartition(".")
    if last in ("revision", "digest"):  # of the same model, dataset or artifact, or it says nothing
        same = all(started.get(f"{of}.{name}") == asked.get(f"{of}.{name}") for name in ("model", "dataset", "artifact"))
        return same and not (isinstance(asked[path], str) and STABLE.fullmatch(str(asked[path])))
    name, _, commit = str(started[path]).rpartition("@")
    return path.startswith("prompts.source.") and name == str(asked[path]).partition("@")[0] and bool(COMMIT.fullmatch(commit))


def flattened(value: object, path: str = "") -> dict[str, object]:
    """The plain values inside nested JSON, by dotted path, such as `evaluation.judges.0.kind`."""
    if isinstance(value, Mapping):
        inner = {str(key): below for key, below in value.items()}
    elif isinstance(value, list) and any(isinstance(below, Mapping | list) for below in value):
        inner = {str(position): below for position, below in enumerate(value)}
    else:
        return {path: value}
    found: dict[str, object] = {}
    for key, below in inner.items():
        found |= flattened(below, f"{path}.{key}" if path else key)
    return found
