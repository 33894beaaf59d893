"""The policy that others start from: a name, and the artifact it stands for now.

`published/<name>.json` is the newest; `published/<name>/<n>.json`, n = 1, 2, .., written once each, are all of them.
"""

from pydantic import BaseModel, ConfigDict, Field

from sppo.errors import RunError
from sppo.recipe import PolicySource, Recipe, StoredModel
from sppo.runs import RUN_NAME, Entry, finished_iterations, read_iteration, read_recipe, utc_now
from sppo.store import Store
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed


class Publication(BaseModel):
    """A policy under a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    number: int = Field(ge=1)
    """Counts what the name has stood for."""
    run: str
    iteration: int = Field(ge=1)
    policy: Entry
    published: str
    """UTC, ISO 8601."""


def publish(store: Store, run: str, iteration: int | None = None, name: str | None = None) -> Publication:
    """Let a name stand for what an iteration trained: the recipe's name and the last finished iteration, if none are given.

    What the name stands for already is not published again. Raises RunError for an iteration that has not ended,
    CorruptArtifactError or StoreError if its policy is not whole."""
    name = name or read_recipe(store, run).name
    index = read_iteration(store, run, iteration or max(1, len(finished_iterations(store, run))))
    policy = index.artifacts["train"]
    found = index.opened(store, "train").digest
    if found != policy.digest:
        raise RunError(f"{policy.reference} has the content digest {found[:16]}; run {run} trained {policy.digest[:16]}")
    last = last_published(store, name)
    if last is not None and (last.run, last.iteration, last.policy) == (run, index.iteration, policy):
        return last
    number = 1 if last is None else last.number + 1
    made = Publication(name=name, number=number, run=run, iteration=index.iteration, policy=policy, published=utc_now())
    while not store.backend.create(_history_key(name, made.number), sealed(made, _history_key(name, made.number))):
        made = made.model_copy(update={"number": made.number + 1})  # someone else published meanwhile
    store.backend.replace(_key(name), sealed(made, _key(name)))
    return made


def last_published(store: Store, name: str) -> Publication | None:
    """What a name stands for; None for a name that nothing was published under.

    The numbered records decide: a newest record that another publisher, or a crash, left behind is only where to look from."""
    newest = _read(store, _key(name))
    number = 1 if newest is None else newest.number + 1
    while (later := _read(store, _history_key(name, number))) is not None:
        newest, number = later, number + 1
    return newest


def from_published(store: Store, recipe: Recipe) -> Recipe | None:
    """The recipe with the policy last published under its name as pi_0; None if there is none yet."""
    last = last_published(store, recipe.name)
    if last is None:
        return None
    return with_policy(recipe, StoredModel(kind="stored", artifact=last.policy.reference, digest=last.policy.digest))


def with_policy(recipe: Recipe, source: PolicySource) -> Recipe:
    """The recipe with another pi_0."""
    return recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"source": source})})


def check_published_name(name: str) -> str:
    """The name itself. Raises RunError for one that cannot be a file's."""
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"name {name!r} to publish under; expected 1 to 63 of a-z, 0-9, '.', '_', '-', as in a run's name")
    return name


def _key(name: str) -> str:
    return f"published/{check_published_name(name)}.json"


def _history_key(name: str, number: int) -> str:
    return f"published/{check_published_name(name)}/{number}.json"


def _read(store: Store, key: str) -> Publication | None:
    content = store.backend.read(key)
    return None if content is None else parse_record(Publication, content, key)
