"""Where a judge comes from: the tiny world, a local folder or the hub, kept in the store as one checked folder."""

import logging
import os
from pathlib import Path
from typing import assert_never

from sppo import recipe
from sppo.errors import JudgeError
from sppo.fingerprint import digest_of, file_sha256
from sppo.judges.folder import CONFIG, ENCODER, TOKENIZER, WEIGHTS, encoder_source, read_folder
from sppo.stages import stage_identity
from sppo.store import Outcome, Step, Workspace

log = logging.getLogger(__name__)

FILES = (CONFIG, WEIGHTS, TOKENIZER, ENCODER, "tokenizer_config.json")
"""What is kept of a repository: never pickles, never code."""


def step(judge: recipe.Judge, whole: recipe.Recipe) -> Step | None:
    """The judge's folder as an artifact; None for the world's rule, which needs none.

    A local folder is known by the content of its files. Raises JudgeError for a folder that is not there."""
    if isinstance(judge, recipe.WorldRuleJudge):
        return None
    source = judge.source
    inputs: dict[str, str] = {}
    if isinstance(source, recipe.FolderModel):
        inputs["folder"] = _folder_digest(Path(source.path).expanduser())
    identity = stage_identity("judge", whole.model_copy(update={"judge": judge}), inputs)
    return Step(identity, lambda workspace: _make(source, whole.seed, workspace))


def _folder_digest(folder: Path) -> str:
    if not folder.is_dir():
        raise JudgeError(
            f"judge folder {folder} is not there; expected a PairRM folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}"
        )
    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    return digest_of({name: file_sha256(path) for name, path in files.items()})


def _make(source: recipe.ModelSource, seed: int, workspace: Workspace) -> Outcome:
    folder = workspace.folder / "judge"
    folder.mkdir()
    metrics: dict[str, float] = {}
    match source:
        case recipe.WorldModel():
            from sppo.world.judge import fit

            metrics = fit(folder, seed, workspace.report)
            origin = "of the tiny world"
        case recipe.FolderModel():
            _gather(Path(source.path).expanduser().resolve(), folder)
            origin = f"from {source.path}"
        case recipe.HubModel():
            _gather(_fetch(source.model, source.revision, FILES), folder)
            origin = f"{source.model} at {source.revision[:12]}"
        case _:
            assert_never(source)
    _add_encoder(folder)
    tensors = _checked(folder)
    workspace.add_files(path for path in sorted(folder.iterdir()) if path.name in FILES)
    return Outcome(f"PairRM {origin}, {tensors} tensors", {"tensors": tensors}, metrics)


def _gather(source: Path, folder: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            (folder / name).symlink_to((source / name).resolve())
    if not (folder / WEIGHTS).exists() and (pickles := sorted(source.glob("*.bin"))):
        (folder / pickles[0].name).symlink_to(pickles[0].resolve())  # so that the error can name it


def _add_encoder(folder: Path) -> None:
    """Puts the encoder's config.json beside a native folder's, from the folder or hub model that it names."""
    named = encoder_source(folder)
    if named is None:
        return
    local = Path(named) / CONFIG
    found = local if local.is_file() else _fetch(named, "main", (CONFIG,)) / CONFIG
    log.info("judge: the encoder's shape is that of %s", named)
    (folder / ENCODER).write_bytes(found.read_bytes())


def _checked(folder: Path) -> int:
    from sppo.judges.pairrm import check_tensors, network_of

    described = read_folder(folder)
    check_tensors(described, network_of(described))
    return len(described.shapes)


def _fetch(model: str, revision: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(names)))
    except (OSError, ValueError, RevisionResolutionError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise JudgeError(
            f"judge {model} at {revision} cannot be fetched from the hub{offline}: {' '.join(str(error).split())[:300]}; "
            "check the name and the network, or download it elsewhere and give source: {kind: folder, path: ..}"
        ) from error
