"""Every request with every fault, and a kill on both sides of every file operation: hours, in slices.

    SPPO_SOAK=900 pytest tests/faults/test_soak.py      fifteen minutes of what is left, then again

What was tried is in var/soak/*.jsonl, one case a line, and is not tried again; the figures are in var/soak/*.json."""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from faults.figures import Figures, campaign, reference_of
from faults.labs import Case, FileLab, Lab, Moment, RequestLab
from faults.places import Point
from faults.proxy import Fault
from faults.starts import Attempt

FOLDER = Path(__file__).resolve().parents[2] / "var" / "soak"
KILLS = (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)

pytestmark = [
    pytest.mark.skipif("SPPO_SOAK" not in os.environ, reason="hours: set SPPO_SOAK to the seconds of each of two slices"),
    pytest.mark.timeout(0),
]


def soak(name: str, labs: Sequence[Lab], faults: Sequence[Fault]) -> Figures:
    """Try what is left for as long as there is time; the figures are of all that was ever tried."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = FOLDER / f"{name}.jsonl"
    reference = reference_of(labs)
    figures = Figures(len(reference.moments))
    for case in read_cases(record):
        figures.add(case)
    cases = [(moment, str(fault)) for moment in reference.moments for fault in faults]
    left = [(moment, fault) for moment, fault in cases if f"{fault}: {moment}" not in figures.tried]
    random.Random(7).shuffle(left)  # a slice says something of all of them

    def tell(case: Case) -> None:
        figures.add(case)
        with record.open("a") as stream:
            stream.write(json.dumps(asdict(case)) + "\n")
        shown = {key: value for key, value in asdict(figures).items() if key != "tried"}
        shown["left_to_try"] = len(cases) - figures.cases
        (FOLDER / f"{name}.json").write_text(json.dumps(shown, indent=1) + "\n")

    campaign(labs, left, reference, tell, time.monotonic() + float(os.environ["SPPO_SOAK"]))
    return figures


def read_cases(record: Path) -> list[Case]:
    """What was tried and ended as it should: the rest is tried again."""
    cases = [read_case(line) for line in record.read_text().splitlines()] if record.exists() else []
    return [case for case in cases if case.right]


def read_case(line: str) -> Case:
    told = json.loads(line)
    attempts = [Attempt(**attempt) for attempt in told.pop("attempts")]
    moment = told.pop("moment")
    return Case(moment=Moment(moment["scene"], Point(**moment["point"])), attempts=attempts, **told)


def test_every_request_with_every_fault(request_labs: Callable[[str], list[RequestLab]]) -> None:
    figures = soak("requests", request_labs("iteration"), list(Fault))
    assert figures.names == []


def test_every_file_operation_killed_on_both_sides(file_labs: Callable[[str], list[FileLab]]) -> None:
    figures = soak("files", file_labs("iteration"), KILLS)
    assert figures.names == []
