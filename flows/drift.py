"""Why an artifact that was made before is to be made again: what of its identity, or of its sources, is another now."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from sppo.difference import flattened
from sppo.explanation import shown
from sppo.judges.fetching import local_path
from sppo.lineage import manifests_in, manifests_of
from sppo.recipe import EnsembleJudge, FolderModel, Judge, Recipe, SnorkelPrompts, UltraFeedbackPrompts, WorldPrompts
from sppo.recipe.judges import Weightless
from sppo.runs import IterationIndex
from sppo.sources import is_local
from sppo.stages import STAGES
from sppo.store import Identity, Manifest, Store
from sppo.train.checkpoints import layout_of, step_of

ONCE = ("policy", "judge", "split", "alpaca-reference", "alpaca-prompts")
"""Stages that a run has one artifact of, whatever the iteration."""
SLACK_S = 2 * 3600.0
"""Clocks of different machines may differ by so much."""
FIELDS = 6
"""Differences that are named, at most."""


def why_made_again(store: Store, identity: Identity, index: IterationIndex | None) -> str:
    """What of an artifact's identity is another than of the nearest one that was made before; empty if none comes near.

    index: of the iteration when it was finished once. Without it, one of the store's that differs in a single respect: the
    stage's code, the recipe, or what it is made from."""
    before = [(manifest, _differences(manifest, identity)) for manifest in _candidates(store, identity, index)]
    before = [(manifest, found) for manifest, found in before if found]
    if not before:
        return ""
    nearest, found = min(before, key=lambda pair: (len(pair[1]), -_created(pair[0])))
    named = [f"{name} {_brief(had)}, now {_brief(has)}" for name, (had, has) in list(found.items())[:FIELDS]]
    more = f" and {len(found) - FIELDS} more" if len(found) > FIELDS else ""
    return f"not {nearest.stage}/{nearest.fingerprint[:8]} of {nearest.created[:16]}, which had {'; '.join(named)}{more}"


def _candidates(store: Store, identity: Identity, index: IterationIndex | None) -> Iterator[Manifest]:
    manifest_of = manifests_in(store)
    if index is not None:
        named = [entry.reference for entry in index.artifacts.values() if entry.reference.startswith(f"{identity.stage}/")]
        yield from (found for found in map(manifest_of, named) if found is not None)
        return
    yield from (manifest for manifest in manifests_of(store, identity.stage) if _is_near(manifest, identity))


def _is_near(manifest: Manifest, identity: Identity) -> bool:
    """Whether it differs in one respect, and would not do so in any case, as two iterations' artifacts do."""
    before, now = manifest.inputs, identity.input_digests
    respects = (manifest.version != identity.version, manifest.recipe != dict(identity.recipe), before != now)
    if sum(respects) != 1 or not respects[2]:
        return sum(respects) == 1
    same_draw = identity.stage in ("rank", "estimate") and before.get("generate") == now.get("generate")
    return identity.stage in ONCE or "iteration" in identity.recipe or same_draw


def _differences(manifest: Manifest, identity: Identity) -> dict[str, tuple[object, object]]:
    """Values that differ, by name, as they were and as they are."""
    before: dict[str, object] = {
        "the stage's code in version": manifest.version,
        **flattened(manifest.recipe),
        **manifest.inputs,
    }
    now: dict[str, object] = {"the stage's code in version": identity.version, **flattened(dict(identity.recipe))}
    now |= identity.input_digests
    return {name: (before.get(name), now.get(name)) for name in {**before, **now} if before.get(name) != now.get(name)}


def _brief(value: object) -> str:
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:8]  # a digest
    return "nothing" if value is None else shown(value)


def _created(manifest: Manifest) -> float:
    return datetime.fromisoformat(manifest.created).timestamp()


def steps_kept(checkpoints: Sequence[str], layout: str | None, other_layout: str) -> tuple[int, str]:
    """Steps that a training with these checkpoints need not do again, and why not all that were saved.

    layout: ranks and ZeRO stage that it goes on with; None where that is not known. other_layout: the recipe's."""
    newest = max(checkpoints, key=step_of)
    usable = [step_of(name) for name in checkpoints if layout in (None, layout_of(name))]
    if usable:
        return max(usable), ""
    goes_on = other_layout == "last_weights"
    kept = "only its weights can be taken over" if goes_on else "training begins again"
    return (step_of(newest) if goes_on else 0), f"{newest} is of another layout than {layout}: {kept}"


def may_have_drifted(store: Store, recipe: Recipe, index: IterationIndex) -> bool:
    """Whether a finished iteration is worth another look: a stage's code has another version, or a file that the run was made
    from has changed since. Reading what may be gigabytes again each time would make looking expensive."""
    manifest_of = manifests_in(store)
    found = [manifest_of(entry.reference) for entry in index.artifacts.values()]
    manifests = [manifest for manifest in found if manifest is not None]
    if any(manifest.stage in STAGES and manifest.version != STAGES[manifest.stage].version for manifest in manifests):
        return True
    made = min((_created(manifest) for manifest in manifests if manifest.stage in ONCE), default=time.time())
    return any(changed > made - SLACK_S for changed in map(_changed, _sources(recipe)))


def _changed(place: Path) -> float:
    """When a file, or one of a folder, was last written or put there; 0 for what is not here."""
    try:
        files = [place, *place.iterdir(), *(place / "data").glob("*")] if place.is_dir() else [place]
        return max(file.stat().st_ctime for file in files)  # of the inode: copying keeps the other time
    except OSError:
        return 0.0


def _sources(recipe: Recipe) -> list[Path]:
    """Files and folders of this machine that a run is made from."""
    judges: Sequence[Judge] = (recipe.judge, *recipe.evaluation.judges)
    models = [recipe.policy.source, *(source for judge in judges for source in _sources_of_judge(judge))]
    places = [source.path for source in models if isinstance(source, FolderModel)]
    prompts = recipe.prompts.source
    if not isinstance(prompts, WorldPrompts):
        places += [prompts.dataset] if is_local(prompts.dataset) else []
        places += [prompts.partition] if isinstance(prompts, UltraFeedbackPrompts) and is_local(prompts.partition) else []
        if isinstance(prompts, SnorkelPrompts):
            places += [str(Path(prompts.dataset).parent)]  # a dataset may be the beginning of its files' names
    found = [local_path(place) for place in places]
    return [place for place in found if place is not None]


def _sources_of_judge(judge: Judge) -> list[object]:
    if isinstance(judge, EnsembleJudge):
        return [source for member in judge.members for source in _sources_of_judge(member.judge)]
    return [] if isinstance(judge, Weightless) else [judge.source]
