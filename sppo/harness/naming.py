"""Names of lm-evaluation-harness's tasks, groups and tags."""

import difflib
from collections.abc import Iterable, Sequence
from functools import cache

from sppo.errors import RecipeError


@cache
def upstream_names() -> Sequence[str]:
    """All of upstream's own: reading its 14,000 task files takes some seconds, once a process."""
    from lm_eval.tasks import TaskManager

    names: Sequence[str] = TaskManager().all_tasks
    return names


def check_names(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises RecipeError for the first name that is not known, with the nearest that are."""
    there = set(known)
    for name in names:
        if name not in there:
            near = ", ".join(difflib.get_close_matches(name, known, n=3))
            raise RecipeError(
                f"lm-evaluation-harness knows no task {name!r}; expected a task, group or tag of its own"
                f"{f', such as {near}' if near else ''}: mend the recipe's tasks"
            )
