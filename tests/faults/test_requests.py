"""A whole tiny iteration on a real S3 server: every kind of fault at requests drawn by a seed. `test_soak.py` tries all."""

import random
from collections.abc import Callable

import pytest
from faults.figures import Figures, campaign, reference_of
from faults.labs import RECORDS, RequestLab
from faults.proxy import Fault

EACH = 5
"""Requests hit with each fault."""
STAGES = ("policy", "judge", "split", "generate", "rank", "estimate", "train", "duel", "evaluate", "score", "check")
"""Of an iteration; `sample` works with `generate`, in one engine load."""


@pytest.mark.timeout(900)
def test_whatever_happens_to_a_request_the_run_ends_as_an_undisturbed_one(
    request_labs: Callable[[str], list[RequestLab]],
) -> None:
    labs = request_labs("iteration")
    reference = reference_of(labs)
    assert set(reference.scenes()) == {*STAGES, RECORDS}
    draw = random.Random(20240500675)
    cases = [(moment, str(fault)) for fault in Fault for moment in draw.sample(reference.moments, EACH)]
    figures = Figures(len(reference.moments))

    campaign(labs, cases, reference, figures.add)

    assert figures.names == []
    assert (figures.silent, figures.unfinished, figures.tracebacks) == (0, 0, 0)
    assert figures.faults + figures.kills >= 60
    assert figures.most_redone <= 3  # chunks or steps of one process that were under way
