"""A harness that finds nothing proves nothing: a pipeline that takes a folder that exists for a finished stage must fail it.

Each of its two stages makes a folder, writes two files in place and reads whatever is there.
"""

from collections.abc import Callable, Sequence

import pytest
from faults.figures import Figures, campaign, reference_of
from faults.labs import FileLab, Lab, RequestLab
from faults.proxy import Fault

KILLS = (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)


def figures_of(labs: Sequence[Lab], faults: dict[str, Sequence[Fault]]) -> Figures:
    """Of every moment with the faults for what is done then."""
    reference = reference_of(labs)
    figures = Figures(len(reference.moments))
    cases = [(moment, str(fault)) for moment in reference.moments for fault in faults.get(moment.point.what.split()[-1], ())]
    campaign(labs, cases, reference, figures.add)
    return figures


@pytest.mark.timeout(400)
def test_a_naive_commit_on_a_folder_goes_wrong_in_silence(file_labs: Callable[[str], list[FileLab]]) -> None:
    figures = figures_of(file_labs("naive"), dict.fromkeys(("mkdir", "open", "write"), KILLS))
    # Two stages of mkdir, open, write, open, write, each killed before and after it (a write: halfway): 20 cases. Only a kill
    # before a stage's mkdir leaves no folder that passes for a finished stage.
    assert (figures.points, figures.kills) == (10, 20)
    assert figures.silent == 18


@pytest.mark.timeout(400)
def test_a_naive_commit_on_s3_goes_wrong_in_silence(request_labs: Callable[[str], list[RequestLab]]) -> None:
    figures = figures_of(request_labs("naive"), {"PUT": KILLS, "GET": [Fault.FLIPPED_OUT]})
    # Four writes killed on both sides, four reads with a flipped bit: 12 cases. A stage is torn by a kill after its first write
    # and by one before its second; the first stage's two files are read by the second, which trains on the flipped bit.
    assert (figures.kills, figures.faults) == (8, 4)
    assert figures.silent == 2 * 2 + 2
