"""pi_0, the policy that the first iteration improves: a Hugging Face folder, fetched or made, checked before any model loads.

The artifact's files are the folder: config.json, safetensors, tokenizer, chat template. Later policies (stage `train`) are the
same kind of folder, so everything here that takes a folder serves them too.
"""

import fnmatch
import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from sppo.errors import PolicyError
from sppo.fingerprint import digest_of, file_sha256
from sppo.model_folder import INDEX, code_modules, indexed_weights, read_keys
from sppo.progress import Report, silent
from sppo.recipe import FolderModel, HubModel, Policy, Recipe, StoredModel, WorldModel
from sppo.rendering import Renderer, folded, render
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Store, Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Renderer",
    "build",
    "context_length",
    "folded",
    "load_tokenizer",
    "render",
    "step",
    "stop_token_ids",
    "tokenizer_folder",
    "vocabulary_size",
]

log = logging.getLogger(__name__)

COMMIT = re.compile(r"^[0-9a-f]{40}$")
WEIGHTS = "*.safetensors"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    INDEX,
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DUPLICATES = ("consolidated*.safetensors", "adapter_model*.safetensors")
"""Weights beside the model's own: Mistral's folders hold everything twice."""


def build(store: Store, recipe: Recipe, report: Report = silent) -> Artifact:
    """pi_0: fetched or made by its step, or, of a recipe that starts from a stored policy, that very artifact.

    Raises StoreError if the stored policy is not there, PolicyError if it is not the one that the run was started with."""
    source = recipe.policy.source
    return stored_policy(store, source) if isinstance(source, StoredModel) else store.build(step(recipe), report)


def stored_policy(store: Store, source: StoredModel) -> Artifact:
    """The artifact that a recipe names as its policy. Raises StoreError if it is not there, PolicyError if it is another."""
    artifact = store.open(source.artifact)
    if source.digest is not None and source.digest != artifact.digest:
        raise PolicyError(
            f"policy {source.artifact} has the content digest {artifact.digest[:16]}; expected {source.digest[:16]}, which the "
            "run was started with: it was made anew to other bytes, so start another run from it"
        )
    return artifact


def check_stored(store: Store, policy: Policy, source: StoredModel) -> Artifact:
    """A stored policy, its tokenizer checked against what the recipe asks of one. Raises PolicyError, as a step does."""
    artifact = stored_policy(store, source)
    with tempfile.TemporaryDirectory() as folder:
        check(tokenizer_folder(artifact, Path(folder)), policy)
    return artifact


def step(recipe: Recipe) -> Step:
    """pi_0 as an artifact: its safetensors and tokenizer files, nothing else.

    Raises PolicyError for a folder without config, weights or tokenizer, a hub revision that is not pinned, a policy that is
    stored already, or, when it runs, a tokenizer without chat template or EOS, or one that does not know a stop token."""
    source = recipe.policy.source
    match source:
        case FolderModel():
            folder = Path(os.path.expanduser(source.path))
            files = policy_files(folder)
            digest = digest_of([[path.name, file_sha256(path)] for path in files])
            identity = stage_identity("policy", recipe, {"files": digest})
            return Step(identity, lambda workspace: _commit(workspace, recipe, files))
        case HubModel():
            if not COMMIT.match(source.revision):
                raise PolicyError(
                    f"revision {source.revision!r} of {source.model} can move; expected a commit of 40 hex digits: "
                    "pass the recipe through sppo.resolve.resolve first"
                )
            return Step(stage_identity("policy", recipe, {}), lambda workspace: _commit(workspace, recipe, _download(source)))
        case WorldModel():
            return Step(stage_identity("policy", recipe, {}), lambda workspace: _make(workspace, recipe))
        case StoredModel():
            raise PolicyError(f"policy {source.artifact} is stored already; expected sppo.policy.build, which opens it")
        case _:
            assert_never(source)


def policy_files(folder: Path) -> list[Path]:
    """The files of a policy folder that make the policy, sorted by name.

    Raises PolicyError naming what is missing."""
    if not folder.is_dir():
        raise PolicyError(f"no folder {folder}; expected a policy in Hugging Face form: mend policy.source.path")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "config.json" not in names:
        hint = "; it is an adapter: merge it into its base model first" if "adapter_config.json" in names else ""
        raise PolicyError(f"{folder} has no config.json; expected a policy in Hugging Face form, found {_shown(names)}{hint}")
    read_keys(folder / "config.json", PolicyError)
    weights = _weight_names(folder, names)
    if not set(TOKENIZERS) & set(names):
        raise PolicyError(
            f"{folder} has no tokenizer; expected one of {', '.join(TOKENIZERS)}, found {_shown(names)}: "
            "copy the tokenizer's files beside the weights"
        )
    settings = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in SETTINGS)]
    return [folder / name for name in sorted({*settings, *weights})]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:12]) or "no files"


def _weight_names(folder: Path, names: list[str]) -> list[str]:
    own = [name for name in fnmatch.filter(names, WEIGHTS) if not any(fnmatch.fnmatch(name, other) for other in DUPLICATES)]
    if INDEX in names:
        own = indexed_weights(folder, PolicyError)
        missing = [name for name in own if name not in names]
        if missing:
            raise PolicyError(f"{folder} lacks {_shown(missing)}, named by {INDEX}; copy the whole folder again")
    if not own:
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        hint = f"; {pickled[0]} can run code when opened: convert it to safetensors" if pickled else ""
        raise PolicyError(f"{folder} has no weights; expected *.safetensors, found {_shown(names)}{hint}")
    for name in own:
        _check_safetensors(folder / name)
    return own


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as problem:
        raise PolicyError(f"{path} is not a whole safetensors file: {problem}; copy or download it again") from problem


def _download(source: HubModel) -> list[Path]:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.model, revision=source.revision, allow_patterns=[*SETTINGS, WEIGHTS], ignore_patterns=[*DUPLICATES]
        )
    except (OSError, ValueError) as problem:
        raise PolicyError(
            f"cannot download policy {source.model} at {source.revision[:8]}: {' '.join(str(problem).split())}; "
            "check the network and your access to the model, or give a local folder as policy.source"
        ) from problem
    return policy_files(Path(folder))


def _make(workspace: Workspace, recipe: Recipe) -> Outcome:
    from sppo.world import policy as world_policy

    folder = workspace.folder / "policy"
    folder.mkdir()
    metrics = world_policy.fit(folder, recipe.seed, workspace.report)
    outcome = _commit(workspace, recipe, policy_files(folder))
    return Outcome(outcome.summary, outcome.counts, metrics)


def _commit(workspace: Workspace, recipe: Recipe, files: list[Path]) -> Outcome:
    check(files[0].parent, recipe.policy)
    workspace.add_files(files)
    size = sum(path.stat().st_size for path in files)
    return Outcome(f"{len(files)} files, {size / 1e6:.1f} MB", {"files": len(files), "bytes": size})


def check(folder: Path, policy: Policy) -> None:
    """Everything a run needs of a policy's small files, before a model loads. PAD may be missing: nothing pads by id.

    Raises PolicyError for code of its own, an index that leads out of the folder, a missing chat template or EOS, an unknown
    stop token, or ids past the model's vocabulary."""
    if modules := code_modules(folder, PolicyError):
        raise PolicyError(
            f"{folder} is defined by its own Python, {_shown(modules)}, which is never run for a policy; expected an "
            "architecture that transformers has: choose another policy or revision"
        )
    if (folder / INDEX).is_file():
        indexed_weights(folder, PolicyError)
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise PolicyError(
            f"the tokenizer in {folder} has no chat template; expected an instruction-tuned policy's: "
            "put its chat_template.jinja into the folder"
        )
    stops = stop_token_ids(tokenizer, policy)
    greeting = render(tokenizer, policy, [{"role": "user", "content": "Hello"}])
    size = _settings((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    highest = max([*stops, *greeting])
    if isinstance(size, int) and highest >= size:
        raise PolicyError(
            f"the tokenizer in {folder} gives token id {highest}; its model knows ids below {size}: "
            "use the tokenizer that belongs to the weights"
        )


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The policy's tokenizer, from local files, running none of their code. Raises PolicyError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        cause = " ".join(str(problem).split())
        if "trust_remote_code" in cause:
            raise PolicyError(
                f"the tokenizer in {folder} is defined by its own Python, which is never run; expected a tokenizer.json: "
                "write one with save_pretrained where you trust its source"
            ) from problem
        raise PolicyError(
            f"cannot load the tokenizer in {folder}: {cause}; check its tokenizer.json and config.json"
        ) from problem


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", policy: Policy) -> list[int]:
    """Ids that end a response: the tokenizer's EOS and the recipe's stop tokens, sorted.

    Raises PolicyError for a tokenizer without EOS, or that has no token of that text."""
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"the tokenizer {tokenizer.name_or_path} has no EOS token, so no response could end; "
            "expected eos_token in its tokenizer_config.json: add it"
        )
    vocabulary = tokenizer.get_vocab()
    for text in policy.stop_tokens:
        if text not in vocabulary:
            controls = ", ".join(
                sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)[:12]
            )
            raise PolicyError(
                f"policy.stop_tokens has {text!r}, which the tokenizer {tokenizer.name_or_path} does not know; "
                f"its control tokens: {controls or 'none'}: mend the recipe"
            )
    return sorted({int(tokenizer.eos_token_id), *(int(vocabulary[text]) for text in policy.stop_tokens)})


def _settings(text: str) -> dict[str, Any]:
    """A model's config.json; a multimodal one keeps the language model's values under `text_config`."""
    outer = json.loads(text)
    inner = outer.get("text_config")
    return {**outer, **(inner if isinstance(inner, dict) else {})}


def context_length(policy: Artifact) -> int | None:
    """Positions that the model was made for, by its config.json; None where that does not say."""
    return _whole_number(policy, "max_position_embeddings")


def vocabulary_size(policy: Artifact) -> int | None:
    """How many token ids the model knows, from 0 on, by its config.json; None where that does not say."""
    return _whole_number(policy, "vocab_size")


def _whole_number(policy: Artifact, name: str) -> int | None:
    value = _settings(policy.text("config.json")).get(name)
    return value if isinstance(value, int) else None


def tokenizer_folder(policy: Artifact, target: Path) -> Path:
    """The policy's small files, without its weights, in a folder: a stage that only renders downloads no weights."""
    target.mkdir(parents=True, exist_ok=True)
    for name in policy.file_names():
        if not name.endswith(".safetensors"):
            shutil.copyfile(policy.path(name), target / name)
    return target
