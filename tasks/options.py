"""What all stages' tasks have in common: Prefect keeps no results, and a second attempt is made only where it can help."""

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from sppo.errors import CorruptArtifactError, LaunchError, OutOfMemoryError, StoppedError, StoreError, TimeUpError

FINAL = (CorruptArtifactError, OutOfMemoryError, StoppedError, TimeUpError)
"""Of the errors of stores and processes, those that the same attempt would meet again."""


def retry_helps(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether what failed can succeed unchanged: a store out of reach, a worker that was lost. Never bad input or bad bytes."""
    error = state.data
    return isinstance(error, StoreError | LaunchError) and not isinstance(error, FINAL)


COMMON: dict[str, Any] = {
    # One and the same for all: for each new set of tags Prefect opens a connection of its own, to ask for concurrency limits,
    # which took half of the time of a run that has nothing to do.
    "tags": ["sppo"],
    "cache_policy": NO_CACHE,  # the store is the only cache
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": 5,
    "retry_condition_fn": retry_helps,
}
LIGHT: dict[str, Any] = {**COMMON, "timeout_seconds": 6 * 3600}
"""A stage that reads and writes tables."""
HEAVY: dict[str, Any] = {**COMMON, "retries": 3, "timeout_seconds": 14 * 24 * 3600}
"""A stage with workers: the hardware file's timeout_s ends those long before, by name."""
