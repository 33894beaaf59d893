"""The end of a run on the terminal: the table, the plot, answers side by side, and what to type next."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.plot import write_plot
from sppo.report import RunReport, seconds_head, seconds_rows, table_head, table_rows
from sppo.store import Store

PLOT_NAME = "win-rates.png"


def present(console: Console, report: RunReport, plot: Path, commands: list[str]) -> None:
    """Everything a person wants to see of a finished run."""
    console.print()
    console.print(Text(f"run {report.run}: held-out win rates, mean and 95 % interval over prompts; 0.5 is a tie", "bold"))
    console.print(iteration_table(report))
    console.print()
    console.print(seconds_table(report))
    console.print()
    console.print(Text("held-out prompts: of each, the first draw that changed since the base policy", "bold"))
    console.print(answer_table(report))
    console.print()
    console.print(Text.assemble(("plot     ", "bold"), str(plot)), soft_wrap=True)
    for position, command in enumerate(commands):
        console.print(Text.assemble(("next     " if position == 0 else "         ", "bold"), command), soft_wrap=True)


def iteration_table(report: RunReport) -> Table:
    """One row a policy; 80 columns wide with two judges."""
    return _numbers(table_head(report), table_rows(report))


def seconds_table(report: RunReport) -> Table:
    """One row a stage, one column an iteration."""
    return _numbers(seconds_head(report), seconds_rows(report))


def _numbers(head: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for position, name in enumerate(head):
        table.add_column(name.replace(", ", "\n").replace(" ", "\n"), justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True) for cell in row))
    return table


def answer_table(report: RunReport) -> Table:
    """Held-out prompts and each policy's first answer; model text stays text, whatever markup it holds."""
    table = Table(show_lines=True, header_style="dim")
    for name in ("prompt", "base policy", *(f"iteration {each.iteration}" for each in report.iterations)):
        table.add_column(name, overflow="fold", style="bold" if name == "prompt" else None)
    for answers in report.answers:
        table.add_row(*(shown(text) for text in (answers.prompt, *answers.by_policy)))
    return table


def shown(text: str, limit: int = 400) -> Text:
    """Model text for a terminal: no markup, no control characters, cut at a length a table can bear."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
    return Text(plain if len(plain) <= limit else plain[: limit - 1] + "…")


def next_commands(report: RunReport, store: Store, recipe: str, hardware: str, overrides: Sequence[str]) -> list[str]:
    """What a person may want to type after this run: look closer, or train on all K responses."""
    at = ["--store", store.url]
    other = f"{report.run[:52]}-all"
    changed = [part for override in (*overrides, "selection.responses=all") for part in ("--set", override)]
    commands = [
        ["status", report.run, *at],
        ["verify", report.run, *at],
        ["recipe", "show", recipe],
        ["run", recipe, *at, "--hardware", hardware, "--run", other, *changed],
    ]
    return [shlex.join([program(), *command]) for command in commands]


def program() -> str:
    """`sppo`, or the path it was started by where the shell would not find it: `make demo` activates no environment."""
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.name == "sppo" and shutil.which("sppo") is None else "sppo"


def write_plot_to_store(report: RunReport, store: Store) -> Path:
    """The plot, kept in the store beside the run's index; a local path of it."""
    key = f"runs/{report.run}/{PLOT_NAME}"
    path = write_plot(report, store.scratch / "plots" / report.run / PLOT_NAME)
    store.backend.put_file(key, path)
    return store.backend.local_path(key) or path
