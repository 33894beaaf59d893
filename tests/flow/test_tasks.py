"""What all tasks have in common: Prefect caches nothing, and tries again only where that can help."""

import importlib
from pathlib import Path

import pytest
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from sppo.errors import (
    CorruptArtifactError,
    LaunchError,
    OutOfMemoryError,
    PromptError,
    RecipeError,
    SppoError,
    StoppedError,
    StoreError,
    TimeUpError,
)
from sppo.stages import STAGES
from tasks.options import COMMON, retry_helps

ROOT = Path(__file__).resolve().parents[2]


WITH_OTHERS = {"alpaca-answer": "sample"}
"""Stages that share another's task, as they share its engine load."""


def task_of(stage: str) -> "Task[..., object]":
    modules = [importlib.import_module(f"tasks.{path.stem}") for path in (ROOT / "tasks").glob("*.py")]
    tasks = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Task)}
    [found] = [each for each in tasks.values() if each.name == WITH_OTHERS.get(stage, stage)]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_one_task_of_its_name_that_keeps_no_result(stage: str) -> None:
    shell = task_of(stage)
    assert shell.name == WITH_OTHERS.get(stage, stage)
    assert shell.cache_policy is NO_CACHE
    assert shell.persist_result is False
    assert shell.retries >= 1
    assert shell.tags == {"sppo"}


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (StoreError("the bucket is out of reach"), True),
        (LaunchError("signal SIGKILL"), True),
        (CorruptArtifactError("other bytes"), False),
        (OutOfMemoryError("a micro-batch of one does not fit"), False),
        (TimeUpError("not done after 3600 s"), False),
        (StoppedError("cancelled"), False),
        (PromptError("an empty prompt"), False),
        (RecipeError("an unknown key"), False),
        (ValueError("a fault of ours"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_second_attempt_is_made_where_the_same_input_can_succeed(error: Exception, helps: bool) -> None:
    assert retry_helps(task_of("rank"), None, Failed(data=error)) is helps  # type: ignore[arg-type]


def test_prefect_asks_that_question_of_the_error_itself() -> None:
    attempts: list[str] = []

    @task(**{**COMMON, "retry_delay_seconds": 0})
    def shaky(kind: str) -> str:
        attempts.append(kind)
        if kind == "prompt":
            raise PromptError("an empty prompt")
        if len(attempts) < 3:
            raise StoreError("the bucket is out of reach")
        return "made"

    with pytest.raises(SppoError, match="an empty prompt"):
        shaky("prompt")
    assert attempts == ["prompt"]
    attempts.clear()
    assert shaky("store") == "made"
    assert attempts == ["store", "store", "store"]
