"""Uploading to the Hugging Face hub: one commit that holds all files or none, and that can be tried again.

The hub keeps large files by their content before any commit names them. So an upload that was cut off and is started again
sends only what had not arrived whole, and one whose answer was lost finds nothing to change.
"""

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from sppo.errors import CardError

log = logging.getLogger(__name__)

TOKEN = "HF_TOKEN"
"""The environment variable with the token; a token is read from nowhere else, and shown nowhere."""
PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
REPO = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){PART}/{PART}")
LONGEST = 96
EXAMPLE = "UCLA-AGI/Gemma-2-9B-It-SPPO-Iter2"


def check_repo(repo: str) -> str:
    """The name itself. Raises CardError for one that is not `owner/name`, as the hub allows it."""
    if not REPO.fullmatch(repo) or len(repo) > LONGEST:
        raise CardError(
            f"repository {repo!r}; expected owner/name, each of letters, digits, '-', '_' and '.', at most {LONGEST} together, "
            f"such as {EXAMPLE}"
        )
    return repo


def token_of(environment: Mapping[str, str] = os.environ) -> str:
    """The token to upload with. Raises CardError if the environment has none."""
    token = environment.get(TOKEN, "").strip()
    if not token:
        raise CardError(
            f"no token to upload with: {TOKEN} is not set in the environment; make one that may write to the repository at "
            f"https://huggingface.co/settings/tokens, then export {TOKEN}"
        )
    return token


def push(repo: str, files: Mapping[str, Path], message: str, token: str, public: bool = False) -> str:
    """Upload files in one commit to `owner/name`, made if it is not there: private, unless it is to be public.

    files: by their place in the repository. Result: the commit's address. HF_ENDPOINT may name another hub.
    Raises CardError for a repository with other weights, or if the hub cannot be reached or refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # the hub's client wraps what fails in a thread in RuntimeError; its HTTP library is its own choice
    failures: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)
    started = time.monotonic()
    try:
        api = HfApi(token=token)
        api.create_repo(check_repo(repo), private=not public, exist_ok=True)
        _check_weights(repo, api.list_repo_files(repo), files)
        operations = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        commit = api.create_commit(repo, operations, commit_message=message)
    except failures as problem:
        raise CardError(_refusal(repo, problem).replace(token, TOKEN)) from None  # a cause might quote the token
    size = sum(path.stat().st_size for path in files.values())
    log.info("card: %d files, %.1f MB, %.1f s -> %s", len(files), size / 1e6, time.monotonic() - started, commit.commit_url)
    return str(commit.commit_url)


def _check_weights(repo: str, present: Iterable[str], files: Mapping[str, Path]) -> None:
    """Weights under other names would stay, and a loader may prefer them: one file to several, for one."""
    others = [name for name in present if "/" not in name and name.endswith(".safetensors") and name not in files]
    if others:
        raise CardError(
            f"{repo} holds {', '.join(sorted(others)[:3])}, which is not of this policy and may be loaded in its place; "
            "delete it there, or give another repository"
        )


def _refusal(repo: str, problem: BaseException) -> str:
    said = ": ".join(" ".join(str(each).split()) for each in (problem, problem.__cause__) if each is not None)
    status = getattr(getattr(problem.__cause__ or problem, "response", None), "status_code", None)
    move = "give the same command again: large files that have arrived whole are not sent again"
    if status in (401, 403):
        move = f"check that the token of {TOKEN} is valid and may write to {repo}"
    return f"cannot upload to {repo}: {said or type(problem).__name__}; {move}"
