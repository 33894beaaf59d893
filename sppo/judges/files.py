"""A transformers judge's folder: which files are kept of it, what must be there, and whether its own Python may run."""

import fnmatch
from pathlib import Path

from sppo import model_folder, recipe
from sppo.errors import JudgeError
from sppo.fingerprint import digest_of, file_sha256
from sppo.model_folder import CONFIG, INDEX, indexed_weights, read_keys
from sppo.policy import DUPLICATES, SETTINGS, TOKENIZERS, WEIGHTS

CODE = "*.py"
"""A folder's own Python; kept only where the recipe names it."""
PATTERNS = (*SETTINGS, WEIGHTS)
"""Never pickles, never code."""


def judge_files(folder: Path, code: bool) -> list[Path]:
    """The files of a folder that make the judge, sorted by name; with its Python where that may run.

    Raises JudgeError naming what is missing, or pickled weights."""
    if not folder.is_dir():
        raise JudgeError(f"judge folder {folder} is not there; expected a judge in Hugging Face form: mend the judge's source")
    read_keys(folder / CONFIG, JudgeError)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = {path.name for path in weight_files(folder)}
    if not set(TOKENIZERS) & set(names):
        raise JudgeError(
            f"{folder} has no tokenizer; expected one of {', '.join(TOKENIZERS)}: copy the tokenizer's files beside the weights"
        )
    wanted = (*SETTINGS, CODE) if code else SETTINGS
    settings = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)}
    return [folder / name for name in sorted(settings | weights)]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, one or several. Raises JudgeError for a missing shard, or pickles alone."""
    names = sorted(path.name for path in folder.iterdir())
    if INDEX in names:
        named = indexed_weights(folder, JudgeError)
        for name in named:
            if name not in names:
                raise JudgeError(f"{folder} lacks {name}, which {INDEX} names; copy the whole folder again")
    else:
        own = fnmatch.filter(names, WEIGHTS)
        named = [name for name in own if not any(fnmatch.fnmatch(name, other) for other in DUPLICATES)]
    if named:
        return [folder / name for name in named]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        raise JudgeError(
            f"{folder} has its weights in {pickled[0]}, a pickle, which can run code when opened; expected *.safetensors: "
            "use a revision that has them, or convert it with safetensors where you trust its source"
        )
    raise JudgeError(f"{folder} has no weights; expected *.safetensors beside {CONFIG}: copy or fetch the whole folder again")


def code_name(source: recipe.PretrainedSource, folder: Path) -> str:
    """What a recipe's trust_code says to run exactly this code: `owner/name@commit`, or `path@digest` of a folder's *.py."""
    if isinstance(source, recipe.HubModel):
        return f"{source.model}@{source.revision}"
    return f"{source.path}@{digest_of({path.name: file_sha256(path) for path in sorted(folder.glob(CODE))})}"


def check_code(judge: recipe.SingleJudge, folder: Path, expected: str) -> None:
    """Raises JudgeError if a judge needs Python of its own that its recipe does not name, or names otherwise.

    expected: `code_name` of the source."""
    modules = code_modules(folder)
    trusted = judge.trust_code if isinstance(judge, recipe.RewardModelJudge) else None
    if not modules or trusted == expected:
        return
    shown = ", ".join(modules)
    if not isinstance(judge, recipe.RewardModelJudge):
        raise JudgeError(f"{folder} is defined by its own Python, {shown}; expected an architecture of transformers")
    found = "the recipe names none" if trusted is None else f"the recipe names {trusted!r}"
    raise JudgeError(
        f"{folder} is defined by its own Python, {shown}, which runs only if the recipe names it; {found}: "
        f"read the code, and if you trust it set the judge's trust_code to {expected!r}"
    )


def code_modules(folder: Path) -> list[str]:
    """Python files that define a judge's model; none for an architecture that transformers has. Raises JudgeError."""
    return model_folder.code_modules(folder, JudgeError)
