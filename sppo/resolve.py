"""What can only be decided when a run starts: the engine that is there, the commits that hub revisions stand for now.

The resolved recipe is the one that is fingerprinted: it says exactly what will be computed, today and on any later day.
"""

import importlib.util
import logging
import re
from typing import Literal

from sppo.errors import RecipeError
from sppo.policy import check_stored
from sppo.recipe import (
    EndpointJudge,
    EnsembleJudge,
    HubModel,
    Judge,
    ModelSource,
    OwnPrompts,
    Policy,
    Recipe,
    SingleJudge,
    SnorkelPrompts,
    StoredModel,
    UltraFeedbackPrompts,
    WorldRuleJudge,
)
from sppo.sources import is_local, split_revision
from sppo.store import Store

log = logging.getLogger(__name__)

COMMIT = re.compile(r"^[0-9a-f]{40}$")
Kind = Literal["model", "dataset"]


def resolve(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with its engine chosen, every hub revision replaced by a commit, a stored policy's content digest filled in.

    Raises RecipeError if an engine is asked for that is not installed, or a revision cannot be looked up; PolicyError if a
    stored policy is not in the store or does not suit the recipe."""
    generation = recipe.generation.model_copy(update={"engine": engine(recipe.generation.engine)})
    policy = recipe.policy.model_copy(update={"source": _policy(recipe.policy, store)})
    evaluation: dict[str, object] = {"judges": tuple(_judge(judge) for judge in recipe.evaluation.judges)}
    if recipe.evaluation.alpaca_eval is not None:
        judge = _judge(recipe.evaluation.alpaca_eval.judge)
        evaluation["alpaca_eval"] = recipe.evaluation.alpaca_eval.model_copy(update={"judge": judge})
    return recipe.model_copy(
        update={
            "generation": generation,
            "policy": policy,
            "prompts": recipe.prompts.model_copy(update={"source": _prompts(recipe.prompts.source)}),
            "judge": _judge(recipe.judge),
            "evaluation": recipe.evaluation.model_copy(update=evaluation),
        }
    )


def engine(wanted: Literal["auto", "vllm", "transformers"]) -> Literal["vllm", "transformers"]:
    """The engine that draws responses. `auto` takes vLLM where it is installed, else transformers, and says so."""
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise RecipeError(
            "generation.engine is vllm, which is not installed; expected the extra `cpu` or `gpu` of this package: "
            "install it, or set generation.engine to transformers (slower, and other samples)"
        )
    if wanted == "auto" and not installed:
        log.warning(
            "vLLM is not installed: transformers draws the responses, slower; install the extra `cpu` or `gpu` for vLLM"
        )
    return "vllm" if installed and wanted != "transformers" else "transformers"


def _policy(policy: Policy, store: Store) -> ModelSource | StoredModel:
    source = policy.source
    if isinstance(source, StoredModel):
        return source.model_copy(update={"digest": check_stored(store, policy, source).digest})
    return _model(source)


def _model(source: ModelSource) -> ModelSource:
    if isinstance(source, HubModel):
        return source.model_copy(update={"revision": pin("model", source.model, source.revision)})
    return source


def _judge(judge: Judge) -> Judge:
    if not isinstance(judge, EnsembleJudge):
        return _single_judge(judge)
    members = tuple(member.model_copy(update={"judge": _single_judge(member.judge)}) for member in judge.members)
    return judge.model_copy(update={"members": members})


def _single_judge(judge: SingleJudge) -> SingleJudge:
    if isinstance(judge, WorldRuleJudge | EndpointJudge):
        return judge
    return judge.model_copy(update={"source": _model(judge.source)})


def _prompts(source: object) -> object:
    if isinstance(source, SnorkelPrompts | UltraFeedbackPrompts):
        if not is_local(source.dataset):
            source = source.model_copy(update={"revision": pin("dataset", source.dataset, source.revision)})
        if isinstance(source, UltraFeedbackPrompts):
            return source.model_copy(update={"partition": _pinned_reference(source.partition)})
        return source
    if isinstance(source, OwnPrompts):
        return source.model_copy(update={"dataset": _pinned_reference(source.dataset)})
    return source


def _pinned_reference(reference: str) -> str:
    """A dataset without a revision of its own in the recipe: `owner/name` becomes `owner/name@commit`; a path stays."""
    if is_local(reference):
        return reference
    name, revision = split_revision(reference)
    return f"{name}@{pin('dataset', name, revision)}"


def pin(kind: Kind, name: str, revision: str) -> str:
    """The commit, 40 hex digits, that a revision of the hub stands for now; without a network, in the local cache.

    Raises RecipeError if neither knows."""
    if COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its own client, httpx or httpx2

    try:
        api = HfApi()
        found = api.model_info(name, revision=revision) if kind == "model" else api.dataset_info(name, revision=revision)
        if found.sha:
            return str(found.sha)
        problem: Exception = ValueError("the hub named no commit")
    except (OSError, ValueError, HTTPError) as error:
        problem = error
    cached = _cached(kind, name, revision)
    if cached:
        log.warning("%s %s: the hub cannot be asked, revision %s is taken from the cache: %s", kind, name, revision, cached[:8])
        return cached
    raise RecipeError(
        f"cannot look up revision {revision!r} of the {kind} {name}: {' '.join(str(problem).split())}; "
        "expected the hub or a copy in its local cache: check the network and your access, or give a local folder"
    ) from problem


def _cached(kind: Kind, name: str, revision: str) -> str | None:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    for repository in repositories:
        if repository.repo_type == kind and repository.repo_id == name and revision in repository.refs:
            return str(repository.refs[revision].commit_hash)
    return None
