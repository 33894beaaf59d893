"""`sppo verify`: a run read again to the last byte, and what is broken set aside so that a resume makes only that anew."""

import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.preparation import HARDWARE
from flows.presentation import program
from flows.survey import survey
from sppo.errors import RunError, SppoError
from sppo.hardware import load_hardware
from sppo.runs import check_run_name, finished_iterations, read_recipe
from sppo.store import Store
from sppo.store.leases import holder
from sppo.store.store import REFERENCE
from sppo.verify import set_aside, verify_run
from sppo.verify_records import Verified, verify_records

SHOWN_DIGITS = 12


def show_verified(console: Console, store: Store, run: str, mend: bool = False) -> bool:
    """Each record and artifact of a run, read and hashed again; with `mend`, what is broken is set aside. Whether all is well,
    or is as soon as the commands that are shown have run.

    Raises RunError if a run is at work that what is to be set aside belongs to."""
    started = time.monotonic()
    unfinished, unseen = unfinished_artifacts(store, check_run_name(run))
    verified = verify_run(store, run, unfinished)
    console.print(Text(f"run {run}: every byte read and hashed again", "bold"))
    console.print(_table(verified))
    broken = [each for each in verified if each.problem]
    if unseen:
        console.print(Text(f"not looked at  what the unfinished iteration has made: {unseen}", "yellow"), soft_wrap=True)
    console.print(Text(_summary(verified, time.monotonic() - started)))
    if not broken:
        return True
    if mend:
        return _mend(console, store, run, broken)
    _say(console, "mend", [f"verify {run} --mend"], store)
    return False


def unfinished_artifacts(store: Store, run: str) -> tuple[list[str], str]:
    """References of what the unfinished iteration of a run has made or begun; and, where the run cannot be followed to there,
    why."""
    try:
        recipe, finished = read_recipe(store, run), finished_iterations(store, run)
        if len(finished) >= recipe.iterations:
            return [], ""
        states = survey(store.url, recipe, load_hardware("cpu", HARDWARE), finished)
    except SppoError as error:
        return [], str(error)
    open_ones = [state for state in states if not state.finished]
    problem = next((state.problem for state in open_ones if state.problem), "")
    return [f"{stage.stage}/{stage.fingerprint}" for state in open_ones for stage in state.stages], problem


def check_nobody_holds(store: Store, broken: Sequence[Verified]) -> None:
    """Raises RunError naming an artifact that a process is making right now."""
    for each in broken:
        stage, _, fingerprint = each.reference.partition("/")
        who = holder(store.backend, stage, fingerprint) if len(fingerprint) == 64 else None
        if who is not None:
            raise RunError(
                f"{stage}/{fingerprint[:SHOWN_DIGITS]} is being made right now by {who}, so nothing is set aside; "
                "wait for it, or end it first"
            )


def _mend(console: Console, store: Store, run: str, broken: Sequence[Verified]) -> bool:
    from flows.resumption import check_nobody_is_at_it

    check_nobody_is_at_it(run)
    check_nobody_holds(store, broken)
    records = verify_records(store, run)
    broken = [each for each in broken if REFERENCE.fullmatch(each.reference) or each in records]  # not made again meanwhile
    keys = set_aside(store, broken)
    console.print(Text(f"{len(keys)} objects set aside:", "bold"))
    for key in keys:
        console.print(Text(f"  {key}"), soft_wrap=True)
    _say(console, "next", [each.command.format(run=run) for each in broken], store)
    return True


def _say(console: Console, head: str, commands: Sequence[str], store: Store) -> None:
    for position, command in enumerate(dict.fromkeys(commands)):
        said = shlex.join([program(), *command.split(), "--store", store.url])
        console.print(Text.assemble((f"{head if position == 0 else '':<9}", "bold"), said), soft_wrap=True)


def _table(verified: Sequence[Verified]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("artifact", "files", "bytes", "state"):
        table.add_column(column, justify="right" if column in ("files", "bytes") else "left")
    for each in verified:
        whole = "whole so far" if each.in_the_making else "as committed"
        state = Text(each.problem, "red") if each.problem else Text(whole, "green")
        table.add_row(short(each.reference), str(each.files), str(each.size), state)
    return table


def short(reference: str) -> str:
    """`stage/` and the first digits of a fingerprint; the key of a record as it is."""
    stage, _, fingerprint = reference.partition("/")
    return f"{stage}/{fingerprint[:SHOWN_DIGITS]}" if len(fingerprint) == 64 else reference


def _summary(verified: Sequence[Verified], seconds: float) -> str:
    records = [each for each in verified if each.reference.endswith(".json")]
    files, size = sum(each.files for each in verified), sum(each.size for each in verified)
    damaged = sum(bool(each.problem) for each in verified)
    return (
        f"{len(verified) - len(records)} artifacts and {len(records)} records, {files} files, {size / 1e6:.1f} MB, "
        f"{seconds:.1f} s: {damaged} damaged"
    )
