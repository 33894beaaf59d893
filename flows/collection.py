"""`sppo gc`: what a store holds that nobody needs, as a table; deleted where that is asked for."""

import re
import shlex
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.audit import short, unfinished_artifacts
from flows.presentation import program
from sppo.errors import StoreError
from sppo.garbage import Garbage, check_grace, delete_garbage, find_garbage
from sppo.lineage import named_artifact
from sppo.runs import run_names
from sppo.store import Store

SHOWN = 200
"""Rows of the table."""


def show_garbage(console: Console, store: Store, delete: bool, older_than: str, keep: Sequence[str]) -> None:
    """The garbage of a store; with `delete`, it goes, but for what a run has come to need meanwhile."""
    grace = check_grace(seconds_of(older_than))
    kept = [named_artifact(store, name) for name in keep]
    found = find_garbage(store, grace, kept, _may_go(console, store))
    console.print(Text(f"store {store.url}: reached by no run, branch or publication, not written for {older_than}", "bold"))
    console.print(_table(found[:SHOWN]))
    if len(found) > SHOWN:
        console.print(Text(f"and {len(found) - SHOWN} more"))
    if not delete:
        console.print(Text(f"{_sum(found)} would go; nothing was deleted"))
        again = [program(), "gc", "--delete", "--older-than", older_than, *(part for name in keep for part in ("--keep", name))]
        if found:
            console.print(Text.assemble(("delete   ", "bold"), shlex.join([*again, "--store", store.url])), soft_wrap=True)
        return
    deleted, stayed = delete_garbage(store, found, grace, kept)
    for reason in stayed:
        console.print(Text(f"kept     {reason}", "yellow"), soft_wrap=True)
    console.print(Text(f"deleted  {_sum(deleted)}"))


def seconds_of(text: str) -> float:
    """A time such as 7d or 36h. Raises StoreError for anything else."""
    found = re.fullmatch(r"(\d{1,5})(d|h)", text)
    if found is None:
        raise StoreError(f"--older-than {text!r}; expected days or hours, such as 7d or 36h")
    return float(found[1]) * (24 * 3600 if found[2] == "d" else 3600)


def _may_go(console: Console, store: Store) -> Callable[[str], bool]:
    """Which attempts may go: not what a run would take up again; none at all if a run cannot be followed to there."""
    wanted: set[str] = set()
    for run in run_names(store):
        references, problem = unfinished_artifacts(store, run)
        wanted |= set(references)
        if problem:
            said = f"run {run} cannot be followed to what it would take up again, so no attempt goes: {problem}"
            console.print(Text(said, "yellow"), soft_wrap=True)
            return lambda reference: False
    return lambda reference: reference not in wanted


def _table(found: Sequence[Garbage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("kind", "artifact", "objects", "MB", "days old"):
        table.add_column(column, justify="right" if column in ("objects", "MB", "days old") else "left")
    for each in found:
        name = Text(short(each.reference))
        table.add_row(each.kind, name, str(len(each.keys)), f"{each.size / 1e6:.1f}", f"{each.age_s / 86400:.1f}")
    return table


def _sum(found: Sequence[Garbage]) -> str:
    count = {kind: sum(each.kind == kind for each in found) for kind in ("artifact", "attempt")}
    plural = {kind: f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in count.items()}
    objects, size = sum(len(each.keys) for each in found), sum(each.size for each in found)
    return f"{plural['artifact']} and {plural['attempt']}, {objects} objects, {size / 1e6:.1f} MB"
