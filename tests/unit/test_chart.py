"""Chart forms, corner by corner: 640 wide less 64 left and 16 right; 240 high less 44 above and 40 below."""

from xml.etree import ElementTree

from sppo import chart
from sppo.chart import Curve, Dot


def elements(svg: str, name: str) -> list[dict[str, str]]:
    return [found.attrib for found in ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{name}")]


def texts(svg: str) -> list[str | None]:
    return [found.text for found in ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}text")]


def test_bars_are_as_high_as_their_counts() -> None:
    svg = chart.bars("P", [1, 4, 0], "P", (0.5, 1.0), "ties <1 %")
    assert [bar["height"] for bar in elements(svg, "rect")[1:]] == ["39.0", "156.0", "0.0"]  # of 156
    assert "ties <1 %" in texts(svg)


def test_no_counts_have_a_chart_too() -> None:
    assert [bar["height"] for bar in elements(chart.bars("P", [0, 0], "P", (0.0, 1.0)), "rect")[1:]] == ["0.0", "0.0"]


def test_a_dot_lies_on_its_interval_which_ends_at_the_frame() -> None:
    svg = chart.dots("right", [Dot(0.75, 0.5, 0.25, 1.5)], "P", (0.5, 1.0), (0.0, 1.0), (0.5, 1.0))
    [dot] = elements(svg, "circle")
    assert (dot["cx"], dot["cy"]) == ("344.0", "122.0")  # the middle of 64 to 624 and of 44 to 200
    *_, expected, interval = elements(svg, "line")
    assert (expected["y1"], expected["y2"]) == ("122.0", "44.0")  # from one half to one
    assert (interval["y1"], interval["y2"]) == ("161.0", "44.0")  # from a quarter to the frame, not beyond it


def test_a_power_is_a_straight_line_between_corners() -> None:
    rounds = [1, 10, 100]
    svg = chart.powers("gap", [Curve("bound", rounds, [1, 0.1, 0.01], dashed=True)], "T", height=244)
    [line] = elements(svg, "polyline")
    assert line["points"] == "64.0,44.0 267.0,124.0 470.0,204.0"  # names take 170 at the right
    assert "stroke-dasharray" in line
    assert {"1", "10", "100", "0.1", "0.01", "bound"} <= set(texts(svg))
