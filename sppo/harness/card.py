"""Scores of a harness artifact as a model card shows them: each with interval, n and what it was measured on.

The nine Portuguese tasks by their main metric, in percent, and their average; of upstream's tasks every metric, in its own
unit, a group such as `mmlu` by its mean alone. All else is in the artifact.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from sppo import card
from sppo.card import leaderboard
from sppo.harness.scores import Score, scores_of
from sppo.harness.stage import AVERAGE, SETTINGS_FILE
from sppo.portuguese import TAG
from sppo.portuguese.specification import MAX_NEW_TOKENS
from sppo.portuguese.tables import table_key
from sppo.portuguese.tasks import TASKS
from sppo.store import Artifact

GROUP = "lm-evaluation-harness"
DECIMALS = 4
Place = tuple[str, str]
"""Group and name of a score in a card."""


@dataclass(frozen=True)
class Asked:
    """How the tasks of an artifact were asked."""

    entry: int
    """1 for the first of the recipe's evaluation.harness."""
    recipe: dict[str, Any]
    """What was read of the recipe."""
    tables: dict[str, str]
    """sha256 of the Portuguese tables by key."""
    versions: dict[str, str]

    @property
    def harness(self) -> dict[str, Any]:
        """The recipe's entry."""
        found: dict[str, Any] = self.recipe["evaluation.harness"][0]
        return found

    @property
    def group(self) -> str:
        """What upstream's tasks of this entry are shown under: two entries may ask one task in two ways."""
        return GROUP if self.entry == 1 else f"{GROUP}, entry {self.entry}"


def read_asked(artifact: Artifact, entry: int) -> Asked:
    """How an artifact's tasks were asked. entry: of the recipe, from 1."""
    settings = json.loads(artifact.text(SETTINGS_FILE))
    return Asked(entry, settings["recipe"], settings["tables"], settings["versions"])


def card_scores(artifact: Artifact, policy: int, entry: int) -> card.Scores:
    """The artifact's scores as those of pi_i. entry: of the recipe, from 1."""
    asked = read_asked(artifact, entry)
    placed: dict[Place, Score] = {}
    for score in scores_of(artifact):
        if (place := place_of(score, asked)) is not None:
            placed.setdefault(place, score)  # of a task that two names of the entry have, the first
    shown = [_card_score(score, place, policy, asked) for place, score in placed.items() if _is_finite(score)]
    counts = artifact.manifest.counts
    notes = {}
    if any(group == leaderboard.GROUP for group, _ in placed):
        notes[leaderboard.GROUP] = _leaderboard_notes(asked, policy, counts)
    upstream = {name: score for (group, name), score in placed.items() if group == asked.group}
    if upstream:
        notes[asked.group] = _upstream_notes(asked, policy, counts, upstream)
    return card.Scores(scores=tuple(shown), notes=notes, versions=asked.versions)


def _is_finite(score: Score) -> bool:
    return all(map(math.isfinite, (score.interval.value, score.interval.low, score.interval.high)))


def place_of(score: Score, asked: Asked) -> Place | None:
    """Group and name that a score is shown by.

    None for one that is not: of a task that counts in a group's mean; of the nine, all but the metric they are ranked by."""
    if score.within is not None:
        return None
    if score.task == TAG:
        return leaderboard.GROUP, AVERAGE
    if score.task in TASKS:
        task = TASKS[score.task]
        return (leaderboard.GROUP, task.card_name) if score.metric == task.metric else None
    return asked.group, f"{score.task}, {_metric(score)}"


def _card_score(score: Score, place: Place, policy: int, asked: Asked) -> card.Score:
    if score.task in TASKS:
        task = TASKS[score.task]
        sha256 = asked.tables.get(table_key(task.table, task.test_split))
        return leaderboard.measured(task, policy, score.interval, sha256, asked.harness["max_rows"])
    if score.task == TAG:
        return card.Score.measured(policy, *place, score.interval, 100, unit="%")
    return card.Score.measured(
        policy,
        *place,
        score.interval,
        decimals=DECIMALS,
        dataset=_dataset(score, asked),
        metric=card.Metric(type=score.metric, name=_metric(score)),
    )


def _metric(score: Score) -> str:
    return score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"


def _dataset(score: Score, asked: Asked) -> card.Dataset:
    """By the task's name: two tasks may read the same rows, and readers of a model index would take them for one."""
    args: dict[str, int | float | str | bool] = {} if score.shots is None else {"num_few_shot": score.shots}
    if asked.harness["max_rows"] is not None:
        args["max_rows"] = asked.harness["max_rows"]
    config = None if asked.entry == 1 else f"entry {asked.entry}"
    return card.Dataset(name=score.task, type=score.task, config=config, args=args)


def _leaderboard_notes(asked: Asked, policy: int, counts: dict[str, int]) -> dict[str, str]:
    return {
        **_notes(asked),
        "answers": f"at most {MAX_NEW_TOKENS} tokens, greedy",
        "longest prompt and answer": f"{asked.harness['portuguese_length']} tokens; a longer prompt loses shots",
        "shots that were left out": f"{counts.get('dropped_shots', 0)}, of the prompts of {_name(policy)}",
    }


def _upstream_notes(asked: Asked, policy: int, counts: dict[str, int], scores: dict[str, Score]) -> dict[str, str]:
    versions = {score.task: score.version for score in scores.values()}
    unknown = [name for name, score in scores.items() if not _is_finite(score)]
    return {
        **_notes(asked),
        "longest prompt and answer": f"{asked.harness['max_length']} tokens; a longer prompt loses its beginning",
        "prompts that were cut": f"{counts.get('cut_prompts', 0)}, of those of {_name(policy)}",
        "versions of the tasks": ", ".join(f"{task} {version}" for task, version in versions.items()),
        **({"without a number": ", ".join(unknown)} if unknown else {}),
    }


def _notes(asked: Asked) -> dict[str, str]:
    rows = asked.harness["max_rows"]
    return {
        "answered by": asked.recipe["generation.engine"] or f"the served model {asked.harness['backend']['model']}",
        "asked": "by the chat template, shots as turns" if asked.harness["chat"] else "as one text, without the chat template",
        "rows": "all" if rows is None else f"the first {rows} of each task",
    }


def _name(policy: int) -> str:
    return f"iteration {policy}" if policy else "the base policy"
