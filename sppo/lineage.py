"""What an artifact was made from, down to the base policy and the sources outside the store: read from manifests alone."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from sppo.difference import flattened
from sppo.errors import CorruptArtifactError, RunError, StoreError
from sppo.runs import finished_iterations, read_iteration, read_recipe
from sppo.store import Manifest, Store
from sppo.store.manifest import parse_record
from sppo.store.parallel import in_parallel
from sppo.store.store import REFERENCE

SHORTENED = re.compile(r"[a-z][a-z-]{0,40}/[0-9a-f]{4,64}")
ManifestOf = Callable[[str], Manifest | None]


@dataclass(frozen=True)
class Origin:
    """An artifact, or something outside the store, and what it was made from."""

    reference: str
    """`stage/fingerprint`, or `outside:` and the first digits of a digest."""
    manifest: Manifest | None
    """None for what is outside the store, or not in it any more."""
    made_from: Mapping[str, "Origin"] = field(default_factory=dict)
    """By the role it had."""

    @property
    def outside(self) -> bool:
        """Whether this never was in the store."""
        return self.reference.startswith("outside:")


def lineage(reference: str, manifest_of: ManifestOf) -> Origin:
    """The origin of an artifact, and the origins of that; an artifact that several were made from is one object.

    manifest_of: a reference's manifest, or None where it is not in the store any more."""
    known: dict[str, Origin] = {}

    def trace(at: str) -> Origin:
        if at not in known:
            manifest = None if at.startswith("outside:") else manifest_of(at)
            inputs = {} if manifest is None else manifest.lineage
            known[at] = Origin(at, manifest, {role: trace(source.partition("#")[0]) for role, source in inputs.items()})
        return known[at]

    return trace(reference)


def manifests_in(store: Store) -> ManifestOf:
    """Manifests as they lie in a store; the artifacts' files are not looked at."""

    def manifest_of(reference: str) -> Manifest | None:
        key = f"{reference}/manifest.json"
        content = store.backend.read(key)
        return None if content is None else parse_record(Manifest, content, key)

    return manifest_of


def readable_manifest(store: Store, reference: str) -> Manifest | None:
    """The manifest of an artifact; None where none is committed, or a damaged one, which nobody can open."""
    with suppress(CorruptArtifactError):
        return manifests_in(store)(reference)
    return None


def manifests_of(store: Store, stage: str) -> list[Manifest]:
    """All of a stage, whoever made them; a damaged one is passed over, for `sppo verify` tells of it where it is named."""
    keys = [key.split("/") for key in store.backend.list(stage)]
    references = [f"{stage}/{key[1]}" for key in keys if len(key) == 3 and key[2] == "manifest.json"]
    found = in_parallel(partial(readable_manifest, store), references)
    return [manifest for manifest in found if manifest is not None]


def outside_sources(manifest: Manifest) -> dict[str, str]:
    """Where an artifact's content came from if not from the store, as its recipe part says it: a hub model, a dataset."""
    found: dict[str, str] = {}
    for path, value in manifest.recipe.items():
        source = value if path.endswith(".source") or not isinstance(value, dict) else value.get("source")
        if isinstance(source, dict):
            found[path] = ", ".join(f"{key} {inner}" for key, inner in source.items() if inner is not None)
    return found


def recipe_values(manifest: Manifest) -> dict[str, str]:
    """What an artifact's stage read of the recipe, by dotted path, as JSON."""
    return {path: json.dumps(value, ensure_ascii=False) for path, value in flattened(manifest.recipe).items()}


def named_artifact(store: Store, name: str, iteration: int | None = None, stage: str | None = None) -> str:
    """The full reference of what a person names: `stage/` and the first digits of a fingerprint, or a run, which means its last
    finished iteration, and of that the evaluation, or the stage's artifact.

    Raises RunError for a run, iteration or stage that is not there, StoreError for digits that fit none or several."""
    if "/" in name:
        if iteration is not None:
            raise RunError(f"{name} names one artifact; expected no iteration after it")
        return _completed(store, name)
    read_recipe(store, name)
    index = read_iteration(store, name, iteration or max(1, len(finished_iterations(store, name))))
    return index.opened(store, stage or "evaluate").reference


def _completed(store: Store, shortened: str) -> str:
    if REFERENCE.fullmatch(shortened):
        return store.open(shortened).reference
    stage = shortened.partition("/")[0]
    if not SHORTENED.fullmatch(shortened):
        raise StoreError(f"{shortened!r} names no artifact; expected stage/ and at least 4 digits of a fingerprint, or a run")
    keys = [key for key in store.backend.list(stage) if key.startswith(shortened) and key.endswith("/manifest.json")]
    if len(keys) != 1:
        found = ", ".join(key.removesuffix("/manifest.json")[: len(stage) + 17] for key in keys[:5]) or "none"
        raise StoreError(f"{shortened} fits {len(keys)} artifacts in the store at {store.url}: {found}; give more digits")
    return keys[0].removesuffix("/manifest.json")
