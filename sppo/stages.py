"""The stages: what each reads of the recipe and which it follows. The one table that fingerprints, plans and diffs share."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sppo.fingerprint import stage_fingerprint
from sppo.recipe import Recipe
from sppo.store import Artifact, Identity
from sppo.store.artifact import ArtifactFile


@dataclass(frozen=True)
class Stage:
    """One stage of an iteration."""

    name: str
    version: int
    """Raised when the stage's code changes what it computes."""
    reads: tuple[str, ...]
    """Dotted paths into the recipe."""
    after: tuple[str, ...]
    """Stages whose artifacts it reads."""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("policy", 1, ("policy.source",), ()),
        Stage("judge", 1, ("judge.source",), ()),
        Stage("split", 1, ("prompts", "iterations", "policy.system_role"), ("policy",)),
        Stage("generate", 1, ("generation", "policy.stop_tokens", "policy.dtype", "seed"), ("split", "policy")),
        Stage("rank", 2, ("judge",), ("judge", "generate")),
        Stage("estimate", 2, ("estimator", "selection"), ("rank", "generate")),
        Stage("train", 1, ("training", "policy.dtype", "seed"), ("policy", "generate", "estimate")),
        Stage("export", 1, ("policy.dtype",), ("train",)),
        Stage(
            "sample",
            1,
            (
                "evaluation.sampling",
                "evaluation.max_prompts",
                "generation.engine",
                "policy.stop_tokens",
                "policy.dtype",
                "seed",
            ),
            ("split", "train"),
        ),
        Stage("duel", 1, ("evaluation.judges",), ("judge", "sample")),
        Stage("evaluate", 1, ("evaluation.resamples", "seed"), ("duel",)),
        Stage("score", 1, ("policy.dtype",), ("policy", "sample")),
        Stage(
            "check",
            1,
            ("evaluation.checks", "evaluation.gates", "evaluation.sampling", "evaluation.resamples", "seed"),
            ("sample", "duel", "generate", "rank", "score"),
        ),
        Stage("alpaca-reference", 1, ("evaluation.alpaca_eval.evaluation_set", "evaluation.alpaca_eval.gamed_baselines"), ()),
        Stage(
            "alpaca-prompts",
            1,
            ("evaluation.alpaca_eval.decoding.template", "evaluation.alpaca_eval.max_prompts", "policy.system_role"),
            ("policy", "alpaca-reference"),
        ),
        Stage(
            "alpaca-answer",
            1,
            (
                "evaluation.alpaca_eval.decoding.temperature",
                "evaluation.alpaca_eval.decoding.top_p",
                "evaluation.alpaca_eval.decoding.max_tokens",
                "generation.engine",
                "policy.stop_tokens",
                "policy.dtype",
                "seed",
            ),
            ("alpaca-prompts", "train"),
        ),
        Stage(
            "alpaca-judge",
            1,
            ("evaluation.alpaca_eval.judge", "evaluation.alpaca_eval.order"),
            ("judge", "alpaca-reference", "alpaca-answer"),
        ),
        Stage(
            "alpaca-eval",
            1,
            (
                "evaluation.alpaca_eval.judge",
                "evaluation.alpaca_eval.order",
                "evaluation.alpaca_eval.average",
                "evaluation.alpaca_eval.decoding",
                "evaluation.resamples",
                "seed",
            ),
            ("alpaca-reference", "alpaca-answer", "alpaca-judge"),
        ),
        Stage(
            "harness",
            1,
            (
                "evaluation.harness",
                "generation.engine",
                "policy.stop_tokens",
                "policy.dtype",
                "evaluation.resamples",
                "seed",
            ),
            ("policy", "train"),
        ),
        Stage("benchmark", 1, ("evaluation.resamples", "seed"), ("alpaca-eval", "harness")),
    )
}


ASKED_FOR: dict[str, Callable[[Recipe], bool]] = {
    "export": lambda recipe: recipe.policy.dtype != "float32",
    **{name: lambda recipe: recipe.evaluation.alpaca_eval is not None for name in STAGES if name.startswith("alpaca-")},
    "harness": lambda recipe: bool(recipe.evaluation.harness),
    "benchmark": lambda recipe: bool(recipe.evaluation.harness or recipe.evaluation.alpaca_eval),
}
"""Of the stages that not every recipe has."""


BY_DIGEST = ("rank", "duel", "alpaca-reference", "alpaca-judge", "alpaca-eval", "harness")
"""Stages that read judges or files without where they lie."""


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of an iteration by this recipe, in their order: a float32 policy has no export, and what is not asked for is
    not measured."""
    return [stage for stage in STAGES.values() if stage.name not in ASKED_FOR or ASKED_FOR[stage.name](recipe)]


def recipe_part(stage: str, recipe: Recipe) -> dict[str, object]:
    """What a stage reads of a recipe, as plain JSON keyed by dotted path.

    Where weights come from is left out of every stage but the one that fetches them: they enter by their digest."""
    part: dict[str, object] = {}
    for path in STAGES[stage].reads:
        value: Any = recipe.model_dump(mode="json")
        for name in path.split("."):
            value = value.get(name)  # a judge without weights, such as the world's rule, has no source
        part[path] = _without_sources(value) if stage in BY_DIGEST else value
    if '"kind": "world"' in json.dumps(part):
        part["seed"] = recipe.seed  # the tiny world is made from the recipe's seed
    return part


def _without_sources(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_sources(inner) for key, inner in value.items() if key not in ("source", "trust_code")}
    return [_without_sources(inner) for inner in value] if isinstance(value, list) else value


def stage_identity(
    stage: str,
    recipe: Recipe,
    inputs: Mapping[str, Artifact | ArtifactFile | str],
    more: Mapping[str, object] | None = None,
) -> Identity:
    """Identity of a stage's artifact; `more` adds what the recipe does not know, such as the iteration, or narrows a value
    to what this artifact reads, such as one judge of several."""
    part = {**recipe_part(stage, recipe), **(more or {})}
    return Identity(stage=stage, version=STAGES[stage].version, recipe=part, inputs=dict(inputs))


def plan_fingerprints(recipe: Recipe) -> dict[str, str]:
    """A fingerprint for each stage before anything has run: its recipe part chained with those of the stages before it.

    Equal plans compute the same; an artifact's own fingerprint has the digests of real inputs in their place."""
    plan: dict[str, str] = {}
    for stage in stages_of(recipe):
        inputs = {name: plan[name] for name in stage.after if name in plan}
        plan[stage.name] = stage_fingerprint(stage.name, stage.version, recipe_part(stage.name, recipe), inputs)
    return plan
