"""A card's contents from a run's artifacts: nothing is measured here but the interval of the mean length."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from sppo.card.comparisons import COMPARISONS_FILE, Comparisons, parse_comparisons
from sppo.card.contents import Card, File, Made, Metadata, Portion, Trained
from sppo.card.scores import FILE, Scores, merged, parse_scores, read_scores
from sppo.card.shown import public_values
from sppo.check import read_verdict
from sppo.checks import FILE as CHECKS_FILE
from sppo.checks import CheckReport
from sppo.errors import CardError
from sppo.fingerprint import seed_of
from sppo.last_start import find_last_start
from sppo.lineage import Origin, lineage, manifests_in, named_artifact
from sppo.recipe import HubModel, Recipe
from sppo.report import RunReport, assemble
from sppo.runs import IterationIndex, read_iteration, read_recipe
from sppo.sources import HUB_ID, is_local
from sppo.statistics import Interval, ratio_interval
from sppo.store import Artifact, Manifest, Store
from sppo.summary import short_name

BENCHMARK = "benchmark"
"""What an iteration's index calls the artifact of its scores."""
LICENSES = {
    "google/gemma-2-": "gemma",
    "meta-llama/Meta-Llama-3-8B": "llama3",
    "mistralai/Mistral-7B-Instruct-v0.2": "apache-2.0",
}
"""By the beginning of the base model's name: of those that the recipes here name."""


def read_card(
    store: Store,
    run: str,
    iteration: int,
    repo: str | None = None,
    metadata: Metadata | None = None,
    more: Sequence[Scores] = (),
) -> Card:
    """The card of pi_t, the policy that an iteration of a run trained.

    repo: `owner/name` that it is, or is to be, published as. metadata: what replaces the run's own. more: scores besides those
    that the iterations' artifacts `benchmark` hold; of equal ones, these.
    Raises RunError or RecipeError for an iteration that is not there, StoreError for an artifact that is missing, CardError for
    scores that cannot be read."""
    recipe = read_recipe(store, run)
    recipe.check_iteration(iteration)
    indexes = [read_iteration(store, run, number) for number in range(1, iteration + 1)]
    newest = indexes[-1]
    weights, split = weights_of(store, newest), newest.opened(store, "split")
    last = find_last_start(store, run)
    measured = [parse_scores(found.text(FILE), f"{found.name}/{FILE}") for found in _benchmarks(store, indexes)]
    return Card(
        name=repo.partition("/")[2] if repo else f"{run}-iteration-{iteration}",
        repo=repo,
        run=run,
        iteration=iteration,
        recipe=recipe,
        metadata=_filled(metadata or Metadata(), recipe),
        report=_until(assemble(store, run), iteration),
        report_json=newest.opened(store, "evaluate").text("report.json"),
        mean_tokens=tuple(_mean_tokens(sample, recipe) for sample in newest.samples(store)),
        scores=_of_policies(merged([*measured, *more]), iteration),
        checks=_checks(newest, store),
        verdict=read_verdict(newest.opened(store, "check")) if "check" in newest.artifacts else None,
        comparisons=_comparisons(store, newest),
        portions=_portions(split, recipe.iterations),
        source_digests={role: digest for role, digest in split.manifest.inputs.items() if role != "policy"},
        judge_digest=newest.artifacts["judge"].digest if "judge" in newest.artifacts else None,
        trained=tuple(_trained(store, index) for index in indexes),
        hardware=Path(last.hardware).stem if last else None,
        versions=_versions(weights),
        weights=_made(lineage(weights.reference, manifests_in(store))),
        files=tuple(File(entry.name, entry.size, entry.sha256) for entry in weights.manifest.files),
        lineage=tuple(_lineage(store, newest, weights)),
    )


def weights_of(store: Store, index: IterationIndex) -> Artifact:
    """pi_t as engines load it: rounded to the recipe's dtype where it is kept so, else as it was trained."""
    return index.opened(store, "export" if "export" in index.artifacts else "train")


def named_scores(store: Store, name: str) -> Scores:
    """Scores of a file, or of the artifact that `benchmark/` and the first digits of a fingerprint name.

    Raises CardError for scores that cannot be read, StoreError for digits that fit no artifact."""
    if not name.startswith(f"{BENCHMARK}/") or Path(name).exists():
        return read_scores(Path(name))
    found = store.open(named_artifact(store, name))
    return parse_scores(found.text(FILE), f"{found.name}/{FILE}")


def _filled(given: Metadata, recipe: Recipe) -> Metadata:
    """What was not given, from the recipe."""
    source = recipe.policy.source
    base = given.base_model or (source.model if isinstance(source, HubModel) else None)
    known = next((name for start, name in LICENSES.items() if base and base.startswith(start)), None)
    prompts = recipe.prompts.source
    named = [str(getattr(prompts, key, "")).partition("@")[0] for key in ("dataset", "partition")]
    datasets = [name for name in named if HUB_ID.fullmatch(name) and not is_local(name)]
    return Metadata(given.license or known, base, given.datasets or tuple(dict.fromkeys(datasets)), given.languages)


def _until(report: RunReport, iteration: int) -> RunReport:
    """A run's report as it was when that iteration had ended; a card shows no answers."""
    return replace(report, iterations=report.iterations[:iteration], answers=())


def _mean_tokens(sample: Artifact, recipe: Recipe) -> Interval:
    """All answers count alike, as in the run's report."""
    answers = sample.tables().select(["prompt_id", "token_ids"])
    rows = pa.table({"prompt": answers["prompt_id"], "tokens": answers["token_ids"].combine_chunks().value_lengths()})
    by_prompt = rows.group_by("prompt").aggregate([("tokens", "sum"), ("tokens", "count")]).sort_by("prompt")
    tokens, counts = (by_prompt[name].to_numpy().astype(np.float64) for name in ("tokens_sum", "tokens_count"))  # (N,) each
    return ratio_interval(tokens, counts, recipe.evaluation.resamples, seed_of(recipe.seed, "bootstrap"))


def _of_policies(scores: Scores, newest: int) -> Scores:
    return scores.model_copy(update={"scores": tuple(score for score in scores.scores if score.policy <= newest)})


def _benchmarks(store: Store, indexes: Sequence[IterationIndex]) -> Iterator[Artifact]:
    for index in indexes:
        if BENCHMARK in index.artifacts:
            yield index.opened(store, BENCHMARK)


def _checks(index: IterationIndex, store: Store) -> CheckReport | None:
    if "check" not in index.artifacts:
        return None
    return CheckReport.model_validate_json(index.opened(store, "check").text(CHECKS_FILE))


def _comparisons(store: Store, index: IterationIndex) -> Comparisons:
    found = next(_benchmarks(store, [index]), None)
    if found is None or COMPARISONS_FILE not in found.file_names():
        return Comparisons()
    return parse_comparisons(found.text(COMPARISONS_FILE), f"{found.name}/{COMPARISONS_FILE}")


def _portions(split: Artifact, iterations: int) -> tuple[Portion, ...]:
    named = {f"train-{number}.parquet": f"iteration {number}" for number in range(1, iterations + 1)}
    digests = {entry.name: entry.sha256 for entry in split.manifest.files}
    counts = split.manifest.counts
    return tuple(
        Portion(name, counts[file.removesuffix(".parquet").replace("-", "_")], digests[file])
        for file, name in {**named, "test.parquet": "held out"}.items()
        if file in digests
    )


def _trained(store: Store, index: IterationIndex) -> Trained:
    counts = index.opened(store, "train").manifest.counts
    missing = [name for name in ("prompts", "responses", "tokens", "steps") if name not in counts]
    if missing:
        raise CardError(
            f"{index.artifacts['train'].reference} does not count its {', '.join(missing)}; expected a policy that this "
            "version trained: run the iteration again under another name"
        )
    return Trained(index.iteration, counts["prompts"], counts["responses"], counts["tokens"], counts["steps"])


def _versions(weights: Artifact) -> dict[str, str]:
    """Of the code that committed the weights, and the library that its configuration is written for."""
    said = {"sppo": weights.manifest.code_version}
    configuration = json.loads(weights.text("config.json"))
    if "transformers_version" in configuration:
        said["transformers (of config.json)"] = str(configuration["transformers_version"])
    return said


def _lineage(store: Store, index: IterationIndex, weights: Artifact) -> Iterator[Made]:
    manifest_of = manifests_in(store)
    for origin in _below(lineage(weights.reference, manifest_of)):
        yield _made(origin)
    for name in ("evaluate", BENCHMARK):
        if name in index.artifacts:
            yield _made(lineage(index.artifacts[name].reference, manifest_of))


def _below(origin: Origin) -> Iterator[Origin]:
    """An origin and all it was made from, nearest first, each once."""
    seen, waiting = {origin.reference}, [origin]
    while waiting:
        nearest = waiting.pop(0)
        yield nearest
        for one in nearest.made_from.values():
            if one.reference not in seen:
                seen.add(one.reference)
                waiting.append(one)


def _made(origin: Origin) -> Made:
    made_from = tuple(f"{role} {short_name(one.reference)}" for role, one in origin.made_from.items())
    manifest = origin.manifest
    if manifest is None:
        said = "outside the store" if origin.outside else "not in the store any more"
        return Made(origin.reference, "", made_from, said, "", "")
    return Made(origin.reference, manifest.digest, made_from, _source(manifest), manifest.code_version, manifest.created)


def _source(manifest: Manifest) -> str:
    """Where a policy's, judge's or split's content came from if not from the store."""
    key = {"policy": "policy.source", "judge": "judge.source", "split": "prompts"}.get(manifest.stage)
    value = manifest.recipe.get(key or "")
    source = value.get("source") if manifest.stage == "split" and isinstance(value, dict) else value
    return ", ".join(f"{name} {inner}" for name, inner in public_values(source or {}).items())
