"""Scores of the Open Portuguese LLM Leaderboard's tasks, as its own entries in model cards name them.

Source: the card of UCLA-AGI/Gemma-2-9B-It-SPPO-Iter2, whose entries the leaderboard wrote.
"""

from sppo.card.scores import Dataset, Metric, Score, Source
from sppo.portuguese import specification
from sppo.portuguese.specification import LeaderboardTask
from sppo.statistics import Interval

GROUP = "Open Portuguese LLM Leaderboard"
ADDRESS = "https://huggingface.co/spaces/eduagarcia/open_pt_llm_leaderboard"
METRICS: dict[specification.Metric, str] = {
    "acc": "accuracy",
    "f1_macro": "f1-macro",
    "pearson": "pearson",
    "mse": "mean squared error",
}
"""What a card calls them."""


def measured(
    task: LeaderboardTask, policy: int, found: Interval, rows_sha256: str | None = None, max_rows: int | None = None
) -> Score:
    """A task's score by an evaluation of ours. found: a share, in [0, 1]; rows_sha256: of the table that was read.

    max_rows: of the task, the first ones, if not all were asked; the model index says so."""
    dataset, metric = _dataset(task, rows_sha256), _metric(task)
    if max_rows is not None:
        dataset = dataset.model_copy(update={"args": {**dataset.args, "max_rows": max_rows}})
    return Score.measured(policy, GROUP, task.card_name, found, 100, unit="%", dataset=dataset, metric=metric)


def published(task: LeaderboardTask, policy: int, percent: float, model: str) -> Score:
    """A task's score as the leaderboard publishes it: without interval and n. model: `owner/name`."""
    return Score(
        policy=policy,
        group=GROUP,
        name=task.card_name,
        value=percent,
        unit="%",
        dataset=_dataset(task, None),
        metric=_metric(task),
        source=Source(name=GROUP, url=f"{ADDRESS}?query={model}"),
    )


def _dataset(task: LeaderboardTask, sha256: str | None) -> Dataset:
    shots: dict[str, int | float | str | bool] = {"num_few_shot": task.shots}
    return Dataset(name=task.card_name, type=task.card_type, split=task.test_split, args=shots, sha256=sha256)


def _metric(task: LeaderboardTask) -> Metric:
    return Metric(type=task.metric, name=METRICS[task.metric])
