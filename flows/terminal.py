"""What the person sees while a run runs: bars or plain lines, one line when a stage ends. All chatter goes to a log file."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from flows.preparation import LOGGERS, tell_stages
from sppo.errors import GateError, SppoError
from sppo.progress import Progress
from tasks.reporting import ProgressLines, listening

PLAIN_WIDTH = 140
"""Of tables in files and pipes."""


class Screen:
    """The person's terminal, while all chatter goes to a log file.

    Engines, servers and C libraries write to the file descriptors themselves, past any logging: those are redirected, and
    stay so for the rest of the process, so that what is said while Python exits is kept as well."""

    def __init__(self, log_file: Path) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file = log_file
        self._kept = (os.dup(1), os.dup(2))
        self.console = plain_console(os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace"))
        self.errors = plain_console(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace"))

    def __enter__(self) -> "Screen":
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._redirect(descriptor, descriptor)
        os.close(descriptor)
        logging.captureWarnings(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, SppoError):
            self.say_why(str(error))
            raise SystemExit(exit_status(error)) from None
        if error is not None:
            self._redirect(*self._kept)  # a fault of ours: let Python show where

    def say_why(self, message: str) -> None:
        """The last words of a run that did not end well."""
        self.console.show_cursor()
        self.errors.print(Text(f"sppo: {message}"), soft_wrap=True)
        self.errors.print(Text(f"log      {self.log_file}"), soft_wrap=True)

    def _redirect(self, output: int, errors: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(output, 1)
        os.dup2(errors, 2)


def exit_status(error: SppoError) -> int:
    """3 for a run that its gates stopped, 2 for everything that went wrong."""
    return 3 if isinstance(error, GateError) else 2


def plain_console(file: IO[str] | None = None, stderr: bool = False) -> Console:
    """A console that guesses no colours for numbers, and is wide where it is no terminal."""
    console = Console(file=file, stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


@contextmanager
def watched(console: Console) -> Iterator["StageLines"]:
    """Show progress and stage lines on this console for a while."""
    handler = StageLines(console)
    tell_stages()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        if console.is_terminal:
            with StageBars(console) as bars, listening(bars.show):
                yield handler
        else:
            with listening(ProgressLines(lambda line: handler.write(line, "dim"))):
                yield handler
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


class StageLines(logging.Handler):
    """Our own log records as lines with a short time. What was committed already is counted instead of told."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.made: set[str] = set()
        self.committed_already: set[str] = set()
        """Artifacts that were there before this run."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "sppo.output":
            return  # what workers print is for the log file
        message = record.getMessage()
        artifact = message.rpartition(" -> ")[2]
        if "nothing to do, committed" in message:
            if artifact not in self.made:
                self.committed_already.add(artifact)
            return
        self.made.add(artifact)
        self.write(message, {logging.INFO: "default", logging.WARNING: "yellow"}.get(record.levelno, "red"))

    def write(self, message: str, style: str) -> None:
        """One line; the message is text, never markup."""
        self.console.print(Text(time.strftime("%H:%M:%S "), "dim"), Text(message, style), sep="", soft_wrap=True)


class RateColumn(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {task.fields['unit']}/s" if speed else "", "cyan")


class LeftColumn(ProgressColumn):
    """Time left at the rate of late; before there is one, the time since the stage began."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds, word = (task.time_remaining, "left") if task.time_remaining is not None else (task.elapsed, "so far")
        minutes, seconds = divmod(int(seconds or 0), 60)
        return Text(f"{minutes}:{seconds:02d} {word}", "dim")


class StageBars:
    """A bar for each stage at work: how far, how fast, how long still."""

    def __init__(self, console: Console) -> None:
        note = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<8}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(20),
            TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
            RateColumn(table_column=Column(no_wrap=True)),
            LeftColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", "dim", markup=False, table_column=note),
            expand=True,
            console=console,
            transient=True,
        )
        self._shown: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "StageBars":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, progress: Progress) -> None:
        """Move a stage's bar; a stage without a unit has only begun, or has ended."""
        with self._lock:
            shown = self._shown.get(progress.stage)
            if not progress.unit and progress.done:
                if shown is not None:
                    self.bars.remove_task(self._shown.pop(progress.stage))
                return
            if shown is None:
                shown = self._shown[progress.stage] = self.bars.add_task(progress.stage, total=None, unit="", count="", note="")
            known = bool(progress.unit)
            self.bars.update(
                shown,
                total=progress.total if known else None,
                completed=progress.done,
                unit=progress.unit,
                count=f"{progress.done}/{progress.total} {progress.unit}" if known else "",
                note=progress.note,
            )
