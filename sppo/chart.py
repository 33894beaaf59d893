"""Small charts as SVG text: what a page of an orchestrator's UI can show without a request and without a drawing library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 40
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
POINTS = 400
"""Most points of a line: of more, the means of neighbours are drawn."""


def lines(title: str, series: Mapping[str, Sequence[float]], across: str) -> str:
    """Values by position, from 1; each series has its own colour."""
    values = np.concatenate([np.asarray(line, dtype=np.float64) for line in series.values()])
    longest = max(len(line) for line in series.values())
    low, high = _widened(float(values.min()), float(values.max()))
    drawn = [_title(title), _axes(across, (1, max(2, longest)), (low, high))]
    for position, (name, line) in enumerate(series.items()):
        colour = COLOURS[position % len(COLOURS)]
        xs, ys = _thinned(np.asarray(line, dtype=np.float64))
        at = " ".join(
            f"{_x(x, 1, max(2, longest)):.1f},{_y(y, low, high):.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        )
        drawn.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn.append(_text(WIDTH - RIGHT - 150 * (len(series) - position - 1), 18, name, "end", colour))
    return _picture(drawn)


def histogram(title: str, values: Array, across: str, span: tuple[float, float], bins: int = 25) -> str:
    """How many of the values (N,) lie in each of `bins` equal parts of a span."""
    counts, _ = np.histogram(values, bins=bins, range=span)
    return bars(title, counts.tolist(), across, span)


def bars(title: str, counts: Sequence[int], across: str, span: tuple[float, float], note: str = "") -> str:
    """Counts in equal parts of a span; the note stands at the right of the title."""
    highest = max(1, *counts)
    drawn = [_title(title), _text(WIDTH - RIGHT, 18, note, "end"), _axes(across, span, (0, highest))]
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    for position, count in enumerate(counts):
        top = _y(count, 0, highest)
        drawn.append(
            f'<rect x="{LEFT + position * width + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" fill="{COLOURS[0]}"/>'
        )
    return _picture(drawn)


@dataclass(frozen=True)
class Dot:
    """A value with the interval it may lie in."""

    x: float
    y: float
    low: float
    high: float


def dots(
    title: str,
    found: Sequence[Dot],
    across: str,
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
    expected: tuple[float, float],
    note: str = "",
) -> str:
    """Values on their intervals, cut at the frame; dashed, a line between the heights expected at the left and the right."""
    drawn = [_title(title), _text(WIDTH - RIGHT, 18, note, "end"), _axes(across, horizontal, vertical)]
    ends = [_y(height, *vertical) for height in expected]
    drawn.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="#888" stroke-dasharray="4 3"/>'
    )
    for dot in found:
        x, y = _x(dot.x, *horizontal), _y(dot.y, *vertical)
        low, high = (_y(min(max(end, vertical[0]), vertical[1]), *vertical) for end in (dot.low, dot.high))
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{COLOURS[0]}" stroke-width="2"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[0]}"/>')
    return _picture(drawn)


@dataclass(frozen=True)
class Curve:
    """A line between positive values, on logarithmic axes."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dashed: bool = False


def powers(title: str, curves: Sequence[Curve], across: str, height: int = 360) -> str:
    """Curves on logarithmic axes, on which a power is a straight line; each curve's name stands at its right end."""
    right = WIDTH - 170  # room for the names
    least = (min(min(curve.xs) for curve in curves), min(min(curve.ys) for curve in curves))
    most = (max(max(curve.xs) for curve in curves), max(max(curve.ys) for curve in curves))

    def x(value: float) -> float:
        return LEFT + math.log(value / least[0]) / math.log(most[0] / least[0]) * (right - LEFT)

    def y(value: float) -> float:
        return height - BOTTOM - math.log(value / least[1]) / math.log(most[1] / least[1]) * (height - TOP - BOTTOM)

    drawn = [_title(title), _text((LEFT + right) / 2, height - 6, across, "middle")]
    for tick in _powers_of_ten(least[0], most[0]):
        drawn.append(_text(x(tick), height - BOTTOM + 16, f"{tick:,g}", "middle"))
        drawn.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="#eee"/>')
    for tick in _powers_of_ten(least[1], most[1]):
        drawn.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
        drawn.append(f'<line x1="{LEFT}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
    for position, curve in enumerate(curves):
        colour = "#888" if curve.dashed else COLOURS[position % len(COLOURS)]
        at = " ".join(f"{x(one):.1f},{y(other):.1f}" for one, other in zip(curve.xs, curve.ys, strict=True))
        style = ' stroke-dasharray="5 4"' if curve.dashed else ""
        drawn.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.8"{style}/>')
        drawn.append(_text(x(curve.xs[-1]) + 8, y(curve.ys[-1]) + 4, curve.name, "start", colour))
    return _picture(drawn, height)


def _powers_of_ten(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**exponent for exponent in exponents]


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], across: str, middle: float) -> str:
    """Label, mean, low and high of each row, as a dot on its interval; a dashed line in the middle."""
    height = TOP + 26 * len(rows) + BOTTOM
    low, high = _widened(min(middle, *(row[2] for row in rows)), max(middle, *(row[3] for row in rows)))
    low, high = low - (high - low) / 12, high + (high - low) / 12  # room for the numbers at the ends
    indent = LEFT + 190
    drawn = [_title(title), _text(WIDTH // 2, height - 6, across, "middle")]

    def x(value: float) -> float:
        return indent + (value - low) / (high - low) * (WIDTH - 3 * RIGHT - indent)

    for tick in _ticks(low, high):
        drawn.append(_text(x(tick), height - BOTTOM + 16, f"{tick:g}", "middle"))
    drawn.append(
        f'<line x1="{x(middle):.1f}" x2="{x(middle):.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}" '
        'stroke="#888" stroke-dasharray="4 3"/>'
    )
    for position, (label, mean, least, most) in enumerate(rows):
        y = TOP + 26 * position + 10
        colour = COLOURS[0]
        drawn.append(_text(indent - 12, y + 4, label, "end"))
        drawn.append(f'<line x1="{x(least):.1f}" x2="{x(most):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="4" fill="{colour}"/>')
        drawn.append(_text(x(mean), y - 7, f"{mean:.3f}", "middle", colour))
    return _picture(drawn, height)


def stacked(charts: Sequence[str]) -> str:
    """Charts of equal size, one below the other, as one picture."""
    moved = [f'<g transform="translate(0 {HEIGHT * position})">{inner}</g>' for position, inner in enumerate(charts)]
    return _picture(moved, HEIGHT * len(charts))


def _picture(drawn: Sequence[str], height: int = HEIGHT) -> str:
    inner = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n{inner}\n</svg>'
    )


def _title(title: str) -> str:
    return f'<text x="{RIGHT}" y="18" font-weight="bold" fill="#222">{escape(title)}</text>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _axes(across: str, horizontal: tuple[float, float], vertical: tuple[float, float]) -> str:
    drawn = [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across, "middle")]
    for tick in _ticks(*horizontal, whole=horizontal[0] == 1):  # steps
        drawn.append(_text(_x(tick, *horizontal), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in _ticks(*vertical):
        y = _y(tick, *vertical)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    return "\n".join(drawn)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The same span, or one around a single value."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Up to about six round numbers within a span, whole ones only if asked."""
    rough = max((high - low) / 5, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _thinned(values: Array) -> tuple[Array, Array]:
    """Positions from 1 and values, (M,) each: means of neighbours where there are more than POINTS."""
    positions = np.arange(1, len(values) + 1, dtype=np.float64)
    if len(values) <= POINTS:
        return positions, values
    parts = np.array_split(np.arange(len(values)), POINTS)
    return np.array([positions[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])
