"""The four sources of prompts, as candidates: where each row comes from, and its id and portion where those are given.

Nothing is judged here; `sppo.split` accounts for every candidate.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from sppo import sources
from sppo.errors import PromptError
from sppo.recipe import OwnPrompts, Recipe, SnorkelPrompts, UltraFeedbackPrompts, WorldPrompts
from sppo.sources import Row, Rows

TEST = 0
"""Place of the held-out prompts; 1 .. T are the iterations."""
KEY = "prompts.source"


@dataclass(frozen=True)
class Candidate:
    """A row that may become a prompt."""

    where: str
    prompt: Any
    """Text, a list of turns, or whatever else the row holds."""
    prompt_id: Any = None
    """As given; None where the id is the sha256 of the prompt."""
    place: int | None = None
    """TEST or an iteration; None where a stable hash of the id decides."""
    problem: str = ""
    """Why the row cannot be read."""


@dataclass
class Candidates:
    """All rows of a source."""

    rows: list[Candidate] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Of rows that are no candidates, by reason."""


def local_digests(recipe: Recipe) -> dict[str, str]:
    """Content digests of the local files that the source reads, by role; a hub dataset is known by its pinned revision."""
    source = recipe.prompts.source
    match source:
        case SnorkelPrompts():
            return _partition_digest("dataset", source.dataset, recipe.iterations)
        case UltraFeedbackPrompts():
            own = {"dataset": sources.digest(sources.files_of(source.dataset))} if sources.is_local(source.dataset) else {}
            return {**own, **_partition_digest("partition", source.partition, recipe.iterations)}
        case OwnPrompts():
            return {"dataset": sources.digest(sources.files_of(source.dataset))} if sources.is_local(source.dataset) else {}
        case WorldPrompts():
            return {}
        case _:
            assert_never(source)


def candidates(recipe: Recipe) -> Candidates:
    """Every row of the recipe's source. Raises PromptError for a file, split or column that is not there."""
    source = recipe.prompts.source
    match source:
        case SnorkelPrompts():
            return _snorkel(source, recipe.iterations)
        case UltraFeedbackPrompts():
            return _ultrafeedback(source, recipe.iterations)
        case OwnPrompts():
            return _own(source)
        case WorldPrompts():
            return _world(source, recipe)
        case _:
            assert_never(source)


def split_names(iterations: int) -> Iterator[tuple[int, str]]:
    """The Snorkel dataset's splits and their places; the test splits of all iterations are one held-out set."""
    for iteration in range(1, iterations + 1):
        yield iteration, f"train_iteration_{iteration}"
        yield TEST, f"test_iteration_{iteration}"


def _partition_digest(role: str, reference: str, iterations: int) -> dict[str, str]:
    if not sources.is_local(reference):
        return {}
    files = [file for _, split in split_names(iterations) for file in sources.split_files(reference, split)]
    return {role: sources.digest(files)}


def _partition_rows(reference: str, revision: str, split: str, wanted: list[str]) -> Rows:
    if sources.is_local(reference):
        return sources.read(sources.split_files(reference, split), wanted)
    return sources.read_hub(reference, revision, split, wanted)


def _snorkel(source: SnorkelPrompts, iterations: int) -> Candidates:
    found = Candidates()
    for place, split in split_names(iterations):
        rows = _partition_rows(source.dataset, source.revision, split, ["prompt_id", "prompt"])
        rows.require("prompt", f"{KEY}.kind to own and {KEY}.prompt_column")
        rows.require("prompt_id", f"{KEY}.kind to own and {KEY}.id_column")
        found.rows += [_candidate(row, "prompt", "prompt_id", place) for row in rows.rows]
    return found


def _candidate(row: Row, prompt_column: str, id_column: str | None, place: int | None = None) -> Candidate:
    problem = row.problem
    if not problem and prompt_column not in row.values:
        problem = f"has no {prompt_column!r}"
    if not problem and id_column is not None and row.values.get(id_column) is None:
        problem = f"has no {id_column!r}"
    prompt_id = row.values.get(id_column) if id_column is not None else None
    return Candidate(row.where, row.values.get(prompt_column), prompt_id, place, problem)


def _ultrafeedback(source: UltraFeedbackPrompts, iterations: int) -> Candidates:
    wanted = ["prompt_id", "prompt", "instruction"]
    if sources.is_local(source.dataset):
        rows = sources.read(sources.files_of(source.dataset), wanted)
    else:
        rows = sources.read_hub(source.dataset, source.revision, None, wanted)
    prompt_column = "instruction" if "prompt" not in rows.columns and "instruction" in rows.columns else "prompt"
    rows.require(prompt_column, f"{KEY}.dataset to UltraFeedback, or {KEY}.kind to own and {KEY}.prompt_column")
    id_column = "prompt_id" if "prompt_id" in rows.columns else None
    places = _places(source, iterations)
    found = Candidates(counts={"outside_partition": 0})
    seen: set[str] = set()
    for row in rows.rows:
        candidate = _candidate(row, prompt_column, id_column)
        prompt_id = _id_in_partition(candidate)
        if candidate.problem or prompt_id in places:
            seen.add(prompt_id)
            found.rows.append(Candidate(row.where, candidate.prompt, prompt_id, places.get(prompt_id, TEST), candidate.problem))
        else:
            found.counts["outside_partition"] += 1
    if not seen & set(places):
        raise PromptError(
            f"none of the {len(rows.rows)} prompts of {source.dataset} is among the {len(places)} ids of {source.partition}; "
            "expected prompt ids that are the sha256 of the prompt: check that the two belong together"
        )
    found.counts["partition_ids_without_prompt"] = len(set(places) - seen)
    return found


def _id_in_partition(candidate: Candidate) -> str:
    if candidate.prompt_id is not None:
        return str(candidate.prompt_id)
    text = candidate.prompt if isinstance(candidate.prompt, str) else ""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _places(source: UltraFeedbackPrompts, iterations: int) -> dict[str, int]:
    """Place of each prompt id of the partition. An id in two splits belongs to the test set, else to the earlier iteration."""
    places: dict[str, int] = {}
    for place, split in sorted(split_names(iterations)):
        reference, revision = source.partition, ""
        if not sources.is_local(reference):
            reference, revision = sources.split_revision(reference)
        rows = _partition_rows(reference, revision, split, ["prompt_id"])
        rows.require("prompt_id", f"{KEY}.partition to a dataset with prompt ids")
        for row in rows.rows:
            if row.values.get("prompt_id") is None:
                raise PromptError(
                    f"{row.where} of the partition has no prompt_id {row.problem}; expected one in each row: mend it"
                )
            places.setdefault(str(row.values["prompt_id"]), place)
    return places


def _own(source: OwnPrompts) -> Candidates:
    wanted = [source.prompt_column, *([source.id_column] if source.id_column else [])]
    if sources.is_local(source.dataset):
        rows = sources.read(sources.files_of(source.dataset), wanted)
    else:
        name, revision = sources.split_revision(source.dataset)
        rows = sources.read_hub(name, revision, source.split, wanted)
    if not rows.rows:
        raise PromptError(f"the dataset {source.dataset} has no rows; expected prompts: mend {KEY}.dataset")
    if rows.columns:  # without any, no line could be read, which is each row's own problem
        rows.require(source.prompt_column, f"{KEY}.prompt_column")
        if source.id_column is not None:
            rows.require(source.id_column, f"{KEY}.id_column")
    return Candidates([_candidate(row, source.prompt_column, source.id_column) for row in rows.rows])


def _world(source: WorldPrompts, recipe: Recipe) -> Candidates:
    from sppo.world import language

    portions, test = language.prompts(recipe.seed, recipe.iterations, source.train_prompts, source.test_prompts)
    found = Candidates()
    for place, rows in enumerate([test, *portions]):
        for number, (prompt_id, messages) in enumerate(rows, start=1):
            found.rows.append(Candidate(f"world portion {place} prompt {number}", messages, prompt_id, place))
    return found


def source_name(recipe: Recipe) -> str:
    """The dataset in a few words, for messages."""
    source = recipe.prompts.source
    return "the tiny world" if isinstance(source, WorldPrompts) else Path(source.dataset).name
