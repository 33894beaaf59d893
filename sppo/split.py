"""x ~ X: one portion of prompts an iteration, and held-out prompts that never train.

Every row of the source is accounted for: it is in one portion, in the test set, a duplicate, or dropped for a reason. That the
portions are disjoint and that no test prompt trains is proved on the files, after they are written.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from sppo.candidates import TEST, Candidate, candidates, local_digests, source_name
from sppo.errors import PromptError
from sppo.fingerprint import canonical_json
from sppo.policy import Renderer, load_tokenizer, tokenizer_folder
from sppo.progress import Progress
from sppo.recipe import Recipe
from sppo.records import Prompt, from_table, to_table
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Workspace
from sppo.store.artifact import ArtifactFile

ROLES = ("system", "user", "assistant")
EXAMPLES = 3
"""Unusable rows shown in a message and kept in the report."""


class UnusableRowError(PromptError):
    """A row that cannot become a prompt, with the reason it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Turns:
    """A candidate that could be read."""

    where: str
    place: int
    prompt_id: str
    messages: list[dict[str, str]]

    @property
    def content(self) -> str:
        """sha256 of the turns."""
        return hashlib.sha256(canonical_json(self.messages).encode()).hexdigest()


@dataclass
class Tally:
    """What became of each row."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def unusable(self, where: str, problem: UnusableRowError) -> None:
        self.counts[f"dropped_{problem.reason}"] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {problem}")

    def dropped(self) -> dict[str, int]:
        """Unusable rows by reason."""
        return {key.removeprefix("dropped_"): count for key, count in sorted(self.counts.items()) if key.startswith("dropped_")}


def portion(split: Artifact, iteration: int) -> ArtifactFile:
    """The prompts that iteration t trains on."""
    return split.file(f"train-{iteration}.parquet")


def held_out(split: Artifact) -> ArtifactFile:
    """The prompts that are only evaluated on, in the order of their ids."""
    return split.file("test.parquet")


def step(recipe: Recipe, policy: Artifact) -> Step:
    """Portions and test prompts, rendered for the policy.

    Raises PromptError, when it runs, for a dataset, column or row that cannot be used, or an id of two prompts."""
    identity = stage_identity("split", recipe, {"policy": policy, **local_digests(recipe)})
    return Step(identity, lambda workspace: _split(workspace, recipe, policy))


def _split(workspace: Workspace, recipe: Recipe, policy: Artifact) -> Outcome:
    renderer = Renderer(load_tokenizer(tokenizer_folder(policy, workspace.folder / "tokenizer")), recipe.policy)
    found = candidates(recipe)
    tally = Tally(Counter({"rows": len(found.rows) + found.counts.get("outside_partition", 0), **found.counts}))
    turns = _distinct(_read(found.rows, recipe, tally), tally)
    portions: dict[int, list[Prompt]] = {place: [] for place in range(recipe.iterations + 1)}
    for number, one in enumerate(turns, start=1):
        try:
            portions[one.place].append(_prompt(one, renderer, recipe.prompts.max_prompt_tokens))
        except UnusableRowError as problem:
            tally.unusable(one.where, problem)
        if number % 50 == 0 or number == len(turns):
            workspace.report(Progress(stage="split", done=number, total=len(turns), unit="prompts"))
    _judge_unusable(recipe, tally)
    for place, prompts in portions.items():
        if not prompts:
            raise PromptError(_empty_portion(recipe, place, portions))
        prompts.sort(key=lambda prompt: prompt.prompt_id)  # the row order of the source does not matter
        workspace.add_table(to_table(Prompt, prompts), _file_name(place))
        tally.counts[_file_name(place).removesuffix(".parquet").replace("-", "_")] = len(prompts)
    prove(workspace, recipe.iterations, tally.counts)
    report = {"counts": dict(sorted(tally.counts.items())), "unusable": tally.dropped(), "examples": tally.examples}
    workspace.add_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "split.json")
    return Outcome(_summary(recipe.iterations, tally), dict(sorted(tally.counts.items())))


def _file_name(place: int) -> str:
    return "test.parquet" if place == TEST else f"train-{place}.parquet"


def _read(rows: Sequence[Candidate], recipe: Recipe, tally: Tally) -> list[Turns]:
    """Candidates as turns with id and place; the test set first, so that of two equal prompts the test set keeps one."""
    turns = []
    for row in rows:
        try:
            turns.append(_turns(row, recipe))
        except UnusableRowError as problem:
            tally.unusable(row.where, problem)
    return sorted(turns, key=lambda one: one.place)


def _turns(row: Candidate, recipe: Recipe) -> Turns:
    if row.problem:
        raise UnusableRowError("unreadable", f"the row {row.problem}; expected a JSON object or table row with a prompt")
    messages = messages_of(row.prompt)
    prompt_id = _prompt_id(row, messages)
    place = row.place if row.place is not None else hashed_place(prompt_id, recipe.iterations, _test_share(recipe))
    return Turns(row.where, place, prompt_id, messages)


def _test_share(recipe: Recipe) -> float:
    return float(getattr(recipe.prompts.source, "test_share", 0.0))


def messages_of(prompt: Any) -> list[dict[str, str]]:
    """The turns of a prompt, exactly as given: a text is one user turn. Other keys of a turn are left out.

    Raises UnusableRowError if it is no text, has no user turn at its end, is empty, or holds what UTF-8 cannot encode."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UnusableRowError(
            "not_text", f"prompt is {_brief(prompt)}; expected text or a list of turns with role and content"
        )
    messages = []
    for turn in turns:
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UnusableRowError(
                "not_text", f"a turn is {_brief(turn)}; expected a role of {', '.join(ROLES)} and text as content"
            )
        messages.append({"role": str(role), "content": content})
    if not messages or not messages[-1]["content"].strip():
        raise UnusableRowError("empty", f"prompt is {_brief(prompt)}; expected text")
    if messages[-1]["role"] != "user":
        raise UnusableRowError("no_user_turn", f"the last turn is the {messages[-1]['role']}'s; expected the user's")
    for message in messages:
        _check_unicode(message["content"], "prompt")
    return messages


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise UnusableRowError(
            "lone_surrogate",
            f"the {name} has the lone surrogate {text[problem.start]!a} at {problem.start}; expected Unicode",
        ) from None


def _brief(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _prompt_id(row: Candidate, messages: list[dict[str, str]]) -> str:
    """The given id, or the sha256 of the prompt: of its text, as in the Snorkel dataset, or of the JSON of its turns."""
    if row.prompt_id is None:
        text = row.prompt if isinstance(row.prompt, str) else canonical_json(messages)
        return hashlib.sha256(text.encode()).hexdigest()
    if isinstance(row.prompt_id, bool) or not isinstance(row.prompt_id, str | int) or not str(row.prompt_id):
        raise UnusableRowError("bad_id", f"prompt id is {_brief(row.prompt_id)}; expected text or a whole number")
    _check_unicode(str(row.prompt_id), "prompt id")
    return str(row.prompt_id)


def hashed_place(prompt_id: str, iterations: int, test_share: float) -> int:
    """TEST or an iteration, by a stable hash of the id alone: the test set is the same for any T and any other rows."""
    digest = hashlib.sha256(f"sppo portion {prompt_id}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 < test_share:
        return TEST
    return 1 + int.from_bytes(digest[8:16], "big") % iterations


def _distinct(turns: list[Turns], tally: Tally) -> list[Turns]:
    """Each prompt once. Raises PromptError if one id stands for two prompts."""
    by_id: dict[str, Turns] = {}
    contents: set[str] = set()
    kept = []
    for one in turns:
        earlier = by_id.setdefault(one.prompt_id, one)
        if earlier.content != one.content:
            raise PromptError(
                f"prompt id {_brief(one.prompt_id)} stands for two prompts, {_brief(earlier.messages[-1]['content'])} at "
                f"{earlier.where} and {_brief(one.messages[-1]['content'])} at {one.where}; expected one prompt an id: "
                "mend the ids, or leave out prompts.source.id_column to use the sha256 of each prompt"
            )
        if earlier is not one:
            tally.counts["duplicates"] += 1
        elif one.content in contents:
            tally.counts["same_prompt_other_id"] += 1
        else:
            contents.add(one.content)
            kept.append(one)
    return kept


def _prompt(one: Turns, renderer: Renderer, max_prompt_tokens: int) -> Prompt:
    try:
        token_ids = renderer.token_ids(one.messages)
    except PromptError as problem:
        raise UnusableRowError("refused_by_template", str(problem)) from problem
    if len(token_ids) > max_prompt_tokens:
        raise UnusableRowError(
            "too_long", f"{len(token_ids)} tokens rendered; at most {max_prompt_tokens} (prompts.max_prompt_tokens)"
        )
    return Prompt(one.prompt_id, one.messages, token_ids)


def _judge_unusable(recipe: Recipe, tally: Tally) -> None:
    dropped = tally.dropped()
    if not dropped or recipe.prompts.unusable_rows == "drop":
        return
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
    total = sum(dropped.values())
    shown = "\n  ".join(tally.examples)
    more = f"\n  and {total - len(tally.examples)} more" if total > len(tally.examples) else ""
    raise PromptError(
        f"{total} of {tally.counts['rows']} rows of {source_name(recipe)} cannot be used ({reasons}):\n  {shown}{more}\n"
        "mend them, or set prompts.unusable_rows to drop, which leaves them out and counts them"
    )


def _empty_portion(recipe: Recipe, place: int, portions: Mapping[int, Sequence[Prompt]]) -> str:
    sizes = ", ".join(f"{_file_name(at).removesuffix('.parquet')} {len(prompts)}" for at, prompts in portions.items())
    name = "the held-out test set" if place == TEST else f"the portion of iteration {place}"
    return (
        f"{name} of {source_name(recipe)} would be empty ({sizes}); expected at least one prompt in each: "
        "give more prompts, lower iterations, or change test_share"
    )


def prove(workspace: Workspace, iterations: int, counts: Mapping[str, int]) -> None:
    """Read the written files again: no id and no prompt is in two of them, and every row is accounted for.

    Raises PromptError naming the first that is."""
    owner: dict[str, str] = {}
    total = 0
    for place in range(iterations + 1):
        name = _file_name(place)
        for prompt in _written(workspace, name):
            total += 1
            for mark in (f"id {prompt.prompt_id}", f"content {canonical_json(prompt.messages)}"):
                if mark in owner:
                    raise PromptError(
                        f"prompt {prompt.prompt_id} is in {owner[mark]} and in {name}; expected disjoint portions"
                    )
                owner[mark] = name
    others = ("duplicates", "same_prompt_other_id", "outside_partition")
    accounted = total + sum(count for key, count in counts.items() if key in others or key.startswith("dropped_"))
    if accounted != counts["rows"]:
        raise PromptError(f"{accounted} of {counts['rows']} rows are accounted for; expected all of them")


def _written(workspace: Workspace, name: str) -> Iterator[Prompt]:
    return from_table(Prompt, pq.read_table(workspace.folder / name, page_checksum_verification=True))


def _summary(iterations: int, tally: Tally) -> str:
    portions = " + ".join(str(tally.counts[f"train_{iteration}"]) for iteration in range(1, iterations + 1))
    lost = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in tally.dropped().items()) or "0 dropped"
    repeated = tally.counts["duplicates"] + tally.counts["same_prompt_other_id"]
    return (
        f"{tally.counts['rows']} rows: {portions} train and {tally.counts['test']} test prompts, {repeated} duplicates, {lost}"
    )
