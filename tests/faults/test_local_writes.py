"""The same iteration on a folder, killed before and in the middle of or after file operations drawn by a seed."""

import random
from collections.abc import Callable

import pytest
from faults.figures import Figures, campaign, reference_of
from faults.labs import FileLab
from faults.proxy import Fault

EACH = 10


@pytest.mark.timeout(600)
def test_killed_at_any_file_operation_the_run_ends_as_an_undisturbed_one(file_labs: Callable[[str], list[FileLab]]) -> None:
    labs = file_labs("iteration")
    reference = reference_of(labs)
    draw = random.Random(20240500675)
    kills = (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)
    cases = [(moment, str(kill)) for kill in kills for moment in draw.sample(reference.moments, EACH)]
    figures = Figures(len(reference.moments))

    campaign(labs, cases, reference, figures.add)

    assert figures.names == []
    assert (figures.silent, figures.unfinished, figures.tracebacks) == (0, 0, 0)
    assert figures.kills >= 2 * EACH - 2  # a thread's turn may come otherwise: then nobody is killed
