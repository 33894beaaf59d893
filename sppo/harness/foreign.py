"""Code that is nobody's here: metrics that lm-evaluation-harness would fetch from the hub and run as Python.

Some of upstream's tasks take a metric through the library `evaluate`, which downloads a module and imports it, and asks nobody.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sppo.errors import EvaluationError


@contextmanager
def no_foreign_code(task: str) -> Iterator[None]:
    """While this lasts, a metric whose Python would come from the hub is not fetched.

    Raises EvaluationError naming it and the task, also where the library passes over a metric that it could not load."""
    if importlib.util.find_spec("evaluate") is None:
        yield
        return
    import evaluate  # type: ignore[import-untyped]

    refused: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> NoReturn:
        refused.append(path)
        raise _refusal(task, path)

    library = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = library
        if refused:  # whatever the library made of it
            raise _refusal(task, refused[0])


def _refusal(task: str, metric: str) -> EvaluationError:
    return EvaluationError(
        f"task {task} scores with {metric!r}, a metric whose Python comes from the hub and would run here; expected metrics "
        "that lm-evaluation-harness has itself: take the task out of evaluation.harness"
    )
