"""What is open or wrong on this machine: one line for each thing looked at, with the next move where there is one.

Each look is a function without arguments that gives findings. They run beside each other, each for a few seconds at most: one
that a server keeps waiting is said to be so, and the others are shown.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from flows.doctor import machine, secrecy, server, storage
from flows.doctor.finding import Finding, wrong

__all__ = ["Finding", "diagnose", "show"]

PATIENCE_S = 8.0
"""Longer than any look takes whose servers answer, or refuse in time, on a busy machine."""
STYLES = {"ok": "green", "open": "yellow", "wrong": "bold red"}


def diagnose(store: str | None) -> list[Finding]:
    """Everything, in a fixed order. store: a URL to be tried out, or None."""
    looks: dict[str, Callable[[], Sequence[Finding]]] = {
        "server": server.look,
        "store": partial(storage.look_at_store, store),
        "scratch": storage.look_at_scratch,
        "secrets": secrecy.look,
        "versions": machine.look_at_versions,
        "devices": machine.look_at_devices,
        "limits": machine.look_at_limits,
    }
    return _side_by_side(looks)


def _side_by_side(looks: dict[str, Callable[[], Sequence[Finding]]]) -> list[Finding]:
    found: dict[str, Sequence[Finding]] = {}

    def look_at(name: str) -> None:
        try:
            found[name] = looks[name]()
        except Exception as problem:  # noqa: BLE001 - whatever a setting makes a library do, the others are shown
            said = f"could not be looked at: {type(problem).__name__}, whose words may hold a secret and are not repeated"
            found[name] = [wrong(name, said, "mend its settings in the environment")]

    threads = [threading.Thread(target=look_at, args=(name,), name=name, daemon=True) for name in looks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"was not done after {PATIENCE_S:.0f} s: something that it asks does not answer"
    return [finding for name in looks for finding in found.get(name) or [wrong(name, silent, "look at its network and log")]]


def show(console: Console, findings: Sequence[Finding]) -> None:
    """One line each, and how many are wrong."""
    for finding in findings:
        line = Text.assemble((f"{finding.state:<6}", STYLES[finding.state]), (f"{finding.subject:<10}", "bold"), finding.said)
        console.print(line if not finding.move else Text.assemble(line, f": {finding.move}"), soft_wrap=True)
    counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()), markup=False)
