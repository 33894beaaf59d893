"""The records of a run, each read again: recipe, index of each iteration, branch, last start, overruled gates, publications.

Each carries a seal over its key and all of its bytes. One that is gone is found where another tells of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from sppo.errors import SppoError
from sppo.last_start import LastStart, latest_key
from sppo.overruling import Overruling
from sppo.publication import Publication
from sppo.runs import Branch, IterationIndex, branch_key, check_run_name, find_recipe, index_key, read_recipe, recipe_key
from sppo.store import Store
from sppo.store.manifest import parse_record

INDEX = re.compile(r"/iteration-(\d+)(-overruled)?\.json$")


@dataclass(frozen=True)
class Verified:
    """One artifact or record, read again."""

    reference: str
    """`stage/fingerprint`, or the key of a record."""
    files: int
    size: int
    """Bytes read."""
    problem: str
    """What is wrong, and what mends it; empty if nothing is."""
    broken: tuple[str, ...] = ()
    """Keys to be set aside so that it can be made anew, in the order in which they are deleted."""
    command: str = "resume {run}"
    """What makes it anew then: arguments of `sppo`."""
    in_the_making: bool = False
    """An artifact that is not committed yet."""


def verify_records(store: Store, run: str) -> list[Verified]:
    """Each record of a run. Raises RunError if no such run was started."""
    keys = store.backend.list(f"runs/{check_run_name(run)}")
    if not keys:
        read_recipe(store, run)  # which says what runs there are
    return [*_recipe(store, run), *_indexes(store, run), *_others(store, run, keys), *_publications(store, run)]


def last_iteration(store: Store, run: str) -> int:
    """The last iteration that any record tells of: an index, an overruled gate, a branch, a publication."""
    found = [INDEX.search(key) for key in store.backend.list(f"runs/{run}")]
    told = [int(match[1]) for match in found if match is not None]
    shared = _shared(store, run)
    told += [] if shared is None else [shared.at]
    for each in _published(store).values():
        told += [each.iteration] if isinstance(each, Publication) and each.run == run else []
    return max(told, default=0)


def read_index(store: Store, run: str, iteration: int) -> IterationIndex | str:
    """The index of an iteration that is told of; in place of one that cannot be read, what is wrong with it."""
    key = index_key(run, iteration)
    content = store.backend.read(key)
    if content is None:
        return f"{key} is missing, although other records tell of iteration {iteration} or a later one of the run"
    try:
        return parse_record(IterationIndex, content, key)
    except SppoError as error:
        return str(error)


def _recipe(store: Store, run: str) -> Iterator[Verified]:
    key = recipe_key(run)
    size = len(store.backend.read(key) or b"")
    problem = ""
    try:
        if find_recipe(store, run) is None:
            problem = f"{key} is missing; expected the recipe that the run was started with: start it again with that one"
    except SppoError as error:
        problem = str(error)
    yield Verified(key, 1, size, problem, (key,) if problem else (), "run RECIPE --run {run}")


def _indexes(store: Store, run: str) -> Iterator[Verified]:
    shared = _shared(store, run)
    for number in range(1, last_iteration(store, run) + 1):
        key = index_key(run, number)
        index = read_index(store, run, number)
        size = len(store.backend.read(key) or b"")
        command = "resume {run}"
        if shared is not None and number <= shared.at:
            command = f"branch {shared.run} --at {shared.at} --recipe RECIPE --run {{run}}"
        problem, broken = (index, (key,)) if isinstance(index, str) else ("", ())
        yield Verified(key, 1, size, problem, broken, command)


def _shared(store: Store, run: str) -> Branch | None:
    """Where a run branched from, if its record can be read."""
    content = store.backend.read(branch_key(run))
    try:
        return None if content is None else parse_record(Branch, content, branch_key(run))
    except SppoError:
        return None


def _others(store: Store, run: str, keys: list[str]) -> Iterator[Verified]:
    """Branch, last start and overruled gates: a run need not have them."""
    first = read_index(store, run, 1) if store.backend.read(index_key(run, 1)) else None
    origin = first.shared_with if isinstance(first, IterationIndex) else None
    yield from _optional(store, branch_key(run), Branch, f"branch {origin or 'ORIGIN'} --at T --recipe RECIPE --run {{run}}")
    if origin is not None and store.backend.read(branch_key(run)) is None:
        problem = f"{branch_key(run)} is missing, although iteration 1 is that of run {origin}"
        yield Verified(branch_key(run), 0, 0, problem, (), f"branch {origin} --at T --recipe RECIPE --run {{run}}")
    yield from _optional(store, latest_key(run), LastStart, "resume {run} --hardware NAME")
    for key in keys:
        if key.endswith("-overruled.json"):
            yield from _optional(store, key, Overruling, "resume {run} --no-gate")


def _optional(store: Store, key: str, kind: type[BaseModel], command: str) -> Iterator[Verified]:
    content = store.backend.read(key)
    if content is None:
        return
    problem = ""
    try:
        parse_record(kind, content, key)
    except SppoError as error:
        problem = str(error)
    yield Verified(key, 1, len(content), problem, (key,) if problem else (), command)


def _publications(store: Store, run: str) -> Iterator[Verified]:
    """Those of this run, and those of which nobody can say whose they are."""
    for key, publication in _published(store).items():
        size = len(store.backend.read(key) or b"")
        if isinstance(publication, str):
            yield Verified(key, 1, size, publication, (key,), "publish {run}")
        elif publication.run == run:
            yield Verified(key, 1, size, "", (), "publish {run}")


def _published(store: Store) -> dict[str, Publication | str]:
    """Every record of a publication by its key; in place of one that cannot be read, what is wrong with it."""
    found: dict[str, Publication | str] = {}
    for key in store.backend.list("published"):
        try:
            found[key] = parse_record(Publication, store.backend.read(key) or b"", key)
        except SppoError as error:
            found[key] = str(error)
    return found
