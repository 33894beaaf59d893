"""Where a judge comes from: the tiny world, a folder, the hub or object storage, kept in the store as one checked folder."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from sppo import recipe
from sppo.errors import JudgeError
from sppo.fingerprint import digest_of, file_sha256
from sppo.judges import files
from sppo.judges.fetching import ObjectFolder, from_hub, local_path
from sppo.judges.folder import CONFIG, ENCODER, TOKENIZER, WEIGHTS, encoder_source, read_folder
from sppo.model_folder import read_keys
from sppo.policy import DUPLICATES
from sppo.progress import Report, silent
from sppo.recipe.judges import Weightless
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Store, Workspace

log = logging.getLogger(__name__)

FILES = (CONFIG, WEIGHTS, TOKENIZER, ENCODER, "tokenizer_config.json")
"""What is kept of a PairRM: never pickles, never code. Of the others, what `sppo.judges.files` says."""
MEMBERS = "members.json"
"""Of an ensemble's artifact: reference and content digest of each member's, null for one without weights."""
ORIGIN = "origin.json"
"""Beside the content: the commits that were fetched."""


def build(store: Store, judge: recipe.Judge, whole: recipe.Recipe, report: Report = silent) -> Artifact | None:
    """A judge's weights, fetched or made; an ensemble's members first. None for a judge that has none."""
    if not isinstance(judge, recipe.EnsembleJudge):
        made = step(judge, whole)
        return None if made is None else store.build(made, report)
    members = [build(store, member.judge, whole, report) for member in judge.members]
    return store.build(ensemble_step(judge, whole, members), report) if any(members) else None


def ensemble_step(judge: recipe.EnsembleJudge, whole: recipe.Recipe, members: Sequence[Artifact | None]) -> Step:
    """An artifact that names the members' artifacts, None for one without weights; their bytes stay where they are."""
    named = [None if member is None else {"reference": member.reference, "digest": member.digest} for member in members]
    inputs = {f"member-{position}": member for position, member in enumerate(members) if member is not None}

    def run(workspace: Workspace) -> Outcome:
        workspace.add_text(json.dumps(named, indent=1, sort_keys=True) + "\n", MEMBERS)
        return Outcome(f"ensemble of {len(members)} judges", {"members": len(members)})

    return Step(stage_identity("judge", whole, inputs, {"judge.source": None, "members": len(members)}), run)


def step(judge: recipe.SingleJudge, whole: recipe.Recipe) -> Step | None:
    """The judge's folder as an artifact; None for a judge without weights: the world's rule, a served model.

    A folder, local or of object storage, is known by the content of its files. Raises JudgeError for one that is not there."""
    if isinstance(judge, Weightless):
        return None
    asked = whole.model_copy(update={"judge": judge})
    if isinstance(judge, recipe.PairRMJudge):
        inputs = _folder_input(judge.source, FILES)
        return Step(stage_identity("judge", asked, inputs), lambda workspace: _make_pairrm(judge, whole.seed, workspace))
    kept = (*files.PATTERNS, files.CODE) if _trusts(judge) else files.PATTERNS
    inputs = {**_folder_input(judge.source, kept, DUPLICATES), "kept": digest_of([list(kept), judge.kind])}
    return Step(stage_identity("judge", asked, inputs), lambda workspace: _take(judge, workspace))


Chat = recipe.RewardModelJudge | recipe.GeneralPreferenceJudge | recipe.PairwiseLLMJudge
"""Judges that are models of transformers."""


def _trusts(judge: Chat) -> bool:
    return isinstance(judge, recipe.RewardModelJudge) and judge.trust_code is not None


def _folder_input(source: recipe.ModelSource, kept: Sequence[str], without: Sequence[str] = ()) -> dict[str, str]:
    """The content digest of a folder, the one input of its step; none for what a commit or a seed says."""
    if not isinstance(source, recipe.FolderModel):
        return {}
    folder = local_path(source.path)
    if folder is None:
        hashes = ObjectFolder(source.path, kept, without).hashes
    elif folder.is_dir():
        paths = [path for form in kept for path in folder.glob(form) if path.is_file()]
        hashes = {path.name: file_sha256(path) for path in paths if not any(path.match(form) for form in without)}
    else:
        expected = f"a PairRM folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}" if kept == FILES else "one in Hugging Face form"
        raise JudgeError(f"judge folder {folder} is not there; expected {expected}: mend the judge's source.path")
    return {"folder": digest_of(hashes)}


def _make_pairrm(judge: recipe.PairRMJudge, seed: int, workspace: Workspace) -> Outcome:
    folder = workspace.folder / "judge"
    folder.mkdir()
    metrics: dict[str, float] = {}
    match judge.source:
        case recipe.WorldModel():
            from sppo.world.judge import fit

            metrics = fit(folder, seed, workspace.report)
        case recipe.FolderModel() | recipe.HubModel():
            _gather(_fetched(judge.source, FILES), folder)
        case _:
            assert_never(judge.source)
    _log_origin(workspace, judge.source, _add_encoder(folder, of_hub=isinstance(judge.source, recipe.HubModel)))
    tensors = _checked(folder)
    workspace.add_files(path for path in sorted(folder.iterdir()) if path.name in FILES)
    _drop_copy(judge.source, FILES)
    return Outcome(f"PairRM {_shown(judge.source)}, {tensors} tensors", {"tensors": tensors}, metrics)


def _take(judge: Chat, workspace: Workspace) -> Outcome:
    """The files of a model of transformers, checked as far as can be without loading it."""
    source = judge.source
    remote = isinstance(source, recipe.FolderModel) and local_path(source.path) is None
    # of object storage the code comes here to be hashed for the message; it is kept only if the recipe names it
    wanted = (*files.PATTERNS, files.CODE) if remote or _trusts(judge) else files.PATTERNS
    folder = _fetched(source, wanted, DUPLICATES)
    files.check_code(judge, folder, files.code_name(source, folder))
    kept = files.judge_files(folder, code=bool(files.code_modules(folder)))
    _check(judge, folder)
    workspace.add_files(kept)
    _log_origin(workspace, source, None)
    _drop_copy(source, wanted, DUPLICATES)
    size = sum(path.stat().st_size for path in kept if path.is_file())
    return Outcome(f"{judge.kind} {_shown(source)}, {len(kept)} files", {"files": len(kept), "bytes": size})


def _check(judge: Chat, folder: Path) -> None:
    match judge:
        case recipe.RewardModelJudge():
            from sppo.judges import reward

            reward.check(judge, folder)
        case recipe.GeneralPreferenceJudge():
            from sppo.judges import general_preference

            general_preference.check(judge, folder)
        case recipe.PairwiseLLMJudge():
            from sppo.judges import pairwise_llm

            pairwise_llm.check(judge, folder)
        case _:
            assert_never(judge)


def _fetched(source: recipe.PretrainedSource, kept: Sequence[str], without: Sequence[str] = ()) -> Path:
    if isinstance(source, recipe.HubModel):
        return from_hub(source.model, source.revision, kept, without)
    folder = local_path(source.path)
    return ObjectFolder(source.path, kept, without).fetch() if folder is None else folder.resolve()


def _drop_copy(source: recipe.ModelSource, kept: Sequence[str], without: Sequence[str] = ()) -> None:
    if isinstance(source, recipe.FolderModel) and local_path(source.path) is None:
        ObjectFolder(source.path, kept, without).drop()


def _shown(source: recipe.ModelSource) -> str:
    match source:
        case recipe.WorldModel():
            return "of the tiny world"
        case recipe.FolderModel():
            return f"from {source.path}"
        case recipe.HubModel():
            return f"{source.model} at {source.revision[:12]}"
        case _:
            assert_never(source)


def _gather(source: Path, folder: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            (folder / name).symlink_to((source / name).resolve())
    if not (folder / WEIGHTS).exists() and (pickles := sorted(source.glob("*.bin"))):
        (folder / pickles[0].name).symlink_to(pickles[0].resolve())  # so that the error can name it


def _add_encoder(folder: Path, of_hub: bool) -> recipe.HubModel | None:
    """Puts the encoder's config.json beside a native folder's, from the hub model that it names or, of a folder, the folder:
    what came from the hub names no file of this machine.

    Result: the hub model, pinned, if it came from one: PairRM's own files say no revision of it.
    Raises JudgeError for a file that is no such encoder's: a judge must not bring this machine's other files into a store."""
    named = encoder_source(folder)
    if named is None:
        return None
    pinned = None
    found = Path(named) / CONFIG
    if of_hub or not found.is_file():
        from sppo.resolve import pin

        pinned = recipe.HubModel(kind="hub", model=named, revision=pin("model", named, "main"))
        found = from_hub(named, pinned.revision, (CONFIG,)) / CONFIG
    log.info("judge: the encoder's shape is that of %s", f"{named} at {pinned.revision}" if pinned else named)
    if read_keys(found, JudgeError).get("model_type") != "deberta-v2":
        raise JudgeError(
            f"the judge names {named!r} as its encoder, whose {CONFIG} says no model_type 'deberta-v2'; expected PairRM's "
            f"encoder: save its own {CONFIG} beside the judge's as {ENCODER}"
        )
    (folder / ENCODER).write_bytes(found.read_bytes())
    return pinned


def _log_origin(workspace: Workspace, source: recipe.ModelSource, encoder: recipe.HubModel | None) -> None:
    if not isinstance(source, recipe.HubModel) and encoder is None:
        return
    named = {"source": source.model_dump(mode="json"), "encoder": encoder.model_dump(mode="json") if encoder else None}
    path = workspace.folder / ORIGIN
    path.write_text(json.dumps(named, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    workspace.add_log(path)


def _checked(folder: Path) -> int:
    from sppo.judges.pairrm import check_tensors, network_of

    described = read_folder(folder)
    check_tensors(described, network_of(described))
    return len(described.shapes)
