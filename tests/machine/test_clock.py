"""A clock that is off by an hour: what is committed does not depend on it, and a server that does says so in words.

The hour is real for every library of a process: a few lines of C stand between it and its clock."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from sppo.store import Store

ROOT = Path(__file__).resolve().parents[2]
Off = Callable[[int], dict[str, str]]

BUILD = """
import json, sys
from pathlib import Path
from sppo.errors import SppoError
from sppo.store import Identity, Outcome, Step, Store

made = []

def run(workspace):
    made.append(1)
    (workspace.folder / "part.bin").write_bytes(b"chunk")
    record = workspace.commit_part("chunk-00000", [workspace.folder / "part.bin"])
    workspace.adopt_part(record)
    workspace.add_text("whole", "text.txt")
    return Outcome("made")

try:
    store = Store(sys.argv[1], Path(sys.argv[2]))
    store.check_writable()
    artifact = store.build(Step(Identity("rank", 2, {"number": int(sys.argv[3])}, {}), run))
    print(json.dumps({"made": len(made), "text": artifact.text("text.txt"), "created": artifact.manifest.created}))
except SppoError as error:
    print(json.dumps({"refused": str(error)}))
"""


def build(url: str, scratch: Path, number: int, environment: dict[str, str]) -> dict[str, object]:
    """A small artifact built by a process of its own, and what it says of it."""
    command = [sys.executable, "-c", textwrap.dedent(BUILD), url, str(scratch), str(number)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["an hour ahead", "an hour behind"])
def test_what_a_machine_with_a_wrong_clock_committed_is_found_by_others(wrong_clock: Off, tmp_path: Path, seconds: int) -> None:
    url = str(tmp_path / "store")
    wrong = build(url, tmp_path / "scratch", 1, wrong_clock(seconds))
    right = build(url, tmp_path / "scratch", 1, wrong_clock(0))
    assert (wrong["made"], right["made"], right["text"]) == (1, 0, "whole")
    assert wrong["created"] == right["created"]  # by the clock of whoever committed, and nothing rests on it
    again = build(url, tmp_path / "scratch", 2, wrong_clock(0))
    assert build(url, tmp_path / "scratch", 2, wrong_clock(seconds))["made"] == 0 < again["made"]  # type: ignore[operator]


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["an hour ahead", "an hour behind"])
def test_a_server_that_refuses_a_wrong_clock_is_heard(ceph_url: str, wrong_clock: Off, tmp_path: Path, seconds: int) -> None:
    told = build(ceph_url, tmp_path / "scratch", 1, wrong_clock(seconds))
    said = str(told.get("refused", ""))
    assert "RequestTimeTooSkewed" in said, told
    assert "set this machine's clock, which differs from the server's by more than 15 minutes" in said
    assert Store(ceph_url, tmp_path / "elsewhere").backend.list("rank") == []
    assert build(ceph_url, tmp_path / "scratch", 1, wrong_clock(0))["made"] == 1
