"""The report as a picture: how sure the judge is, what order and length do, and whether it is right where that is known."""

from collections.abc import Sequence

from sppo import chart
from sppo.preferences.report import Bin, Calibration, Length, Margins, Position, Preferences

WIDE = 1.96
"""Standard errors on either side of a mean: a 95 % interval."""


def drawn(report: Preferences) -> str | None:
    """One panel below the other; None if nothing was judged."""
    panels = [] if report.margins is None else [_sureness(report.margins)]
    panels += [] if report.position is None else [_order(report.position)]
    panels += [] if report.length is None or not report.length.longer_wins_by_difference else [_length(report.length)]
    panels += [] if report.calibration is None else [_calibration(report.calibration)]
    return chart.stacked(panels) if panels else None


def _sureness(margins: Margins) -> str:
    found = margins.sureness
    title = f"How sure the judge is of {sum(found.counts):,} pairs"
    note = f"ties {margins.ties:.1%}"
    return chart.bars(title, found.counts, "P of the preferred answer, both orders averaged", (found.low, found.high), note)


def _order(position: Position) -> str:
    found = position.first_wins
    note = f"{position.order_flips:.1%} of pairs flip with the order"
    across = "chance that the answer shown first wins, by pair: 0.5 without position bias"
    return chart.bars("What the order does", found.counts, across, (found.low, found.high), note)


def _length(length: Length) -> str:
    found = _dots(length.longer_wins_by_difference)
    note = "" if length.longer_wins is None else f"{length.longer_wins:.1%} over all"
    farthest = (0.0, 1.05 * max(dot.x for dot in found))
    across = "characters more, equally many pairs a dot; 95 % intervals"
    return chart.dots("How often the longer answer wins", found, across, farthest, (0.0, 1.0), (0.5, 0.5), note)


def _calibration(calibration: Calibration) -> str:
    found = _dots(calibration.right_by_sureness)
    note = f"calibration error {calibration.error:.3f}"
    if calibration.accuracy is not None:
        note = f"right in {calibration.accuracy:.1%} of pairs, {note}"
    across = "how sure it was; on the line it is as right as it says; 95 % intervals"
    return chart.dots("How often the judge is right", found, across, (0.5, 1.0), (0.0, 1.0), (0.5, 1.0), note)


def _dots(bins: Sequence[Bin]) -> list[chart.Dot]:
    return [
        chart.Dot(each.at, each.mean, each.mean - WIDE * each.standard_error, each.mean + WIDE * each.standard_error)
        for each in bins
    ]
