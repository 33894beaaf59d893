"""Where progress goes: to whoever listens, such as the command line's bars; else to the log, one line every ten seconds."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sppo.progress import Progress, Report, silent
from sppo.store import Artifact, Identity, Outcome, Store, Workspace

log = logging.getLogger(__name__)

LINE_S = 10.0


class ProgressLines:
    """Progress as plain lines, at most one in ten seconds for each stage: what logs and pipes can bear."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self._begun: dict[str, tuple[float, int]] = {}
        self._next: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not progress.unit:
            if not progress.done:
                self.write(f"{progress.stage}: {progress.note}")
            return
        if progress.done >= progress.total:
            self._begun.pop(progress.stage, None)
            self._next.pop(progress.stage, None)
            return
        begun, before = self._begun.setdefault(progress.stage, (now, progress.done))
        if now < self._next.setdefault(progress.stage, now + LINE_S):
            return
        self._next[progress.stage] = now + LINE_S
        self.write(progress_line(progress, (progress.done - before) / (now - begun)))


def progress_line(progress: Progress, rate: float) -> str:
    """One line: counts, rate in units a second, seconds left, and the stage's own note."""
    parts = [f"{progress.stage}: {progress.done} of {progress.total} {progress.unit}"]
    if rate > 0:
        parts += [f"{rate:.3g} {progress.unit}/s", f"{(progress.total - progress.done) / rate:.0f} s left"]
    return ", ".join([*parts, progress.note] if progress.note else parts)


_listeners: list[Report] = [ProgressLines(log.info)]


def report(progress: Progress) -> None:
    """Tell whoever listens now."""
    _listeners[-1](progress)


@contextmanager
def listening(listener: Report) -> Iterator[None]:
    """Send progress to this listener for a while, from every thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def started(stage: str) -> Progress:
    """A stage began and cannot say yet how far it is, for engines load for a while: progress without a unit."""
    return Progress(stage=stage, done=0, total=1, unit="", note="starting")


def ended(stage: str) -> Progress:
    """A stage is over, done or failed: without a unit, all done."""
    return Progress(stage=stage, done=1, total=1, unit="")


class WatchedStore(Store):
    """A store that also says, on the terminal and in the Prefect UI, when work on a stage begins and ends and what it made;
    what is committed already says nothing."""

    def build_together(
        self,
        identities: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report = silent,
    ) -> list[Artifact]:
        from tasks.showing import Effort  # Prefect takes a second to import

        effort = Effort(self)

        def told(progress: Progress) -> None:
            report(progress)
            effort.show(progress)

        def watched(workspaces: Sequence[Workspace]) -> Sequence[Outcome]:
            stage = workspaces[0].stage
            report(started(stage))
            try:
                with effort.under_way(stage):
                    outcomes = run(workspaces)
            finally:
                report(ended(stage))
            for workspace in workspaces:
                effort.note(workspace.stage, workspace.fingerprint)
            return outcomes

        artifacts = super().build_together(identities, watched, told)
        effort.end(artifacts)
        return artifacts
