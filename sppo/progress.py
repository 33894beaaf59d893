"""How a stage tells a person how far it is. The shell decides how that looks."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Progress(BaseModel):
    """A moment of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    done: int
    total: int
    unit: str
    """What is counted: prompts, pairs, steps."""
    note: str = ""
    """Rates and figures worth seeing, such as `4.1k tokens/s` or `loss 0.021`."""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report to nobody."""


class ProgressFile:
    """Progress of a worker process, written for its parent to read: one line of JSON, replaced at most 5 times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < 0.2 and progress.done < progress.total:
            return
        self._last = now
        temporary = self.path.with_suffix(".new")
        temporary.write_text(progress.model_dump_json())
        temporary.replace(self.path)


def read_progress(path: Path) -> Progress | None:
    """The latest line a worker wrote, or None before the first."""
    try:
        return Progress.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
