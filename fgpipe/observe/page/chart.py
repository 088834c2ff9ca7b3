"""Charts as inline SVG: lines, ranges and bars, with their labels beside them.

A chart is 360 pixels wide, a phone's width, so that its text has one size on all screens. Colours are CSS, so that the
page's scheme decides.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fgpipe.observe.page.scale import Scale, Text, around, number, spread

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 44, 66, 10, 36
"""Pixels beside, above and below the data."""
LINE = 12
"""Pixels from one label to the next below."""
MOST = 200
"""Points of a line; of more, every k-th is drawn."""
DOTS = 30
"""Points up to which each has a dot, which says its numbers."""


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    """Of CSS."""
    label: str = ""
    """Beside its end."""
    strong: bool = False
    dot_colors: Sequence[str] = ()
    """One for each point; the line's if there are none."""


def figure(title: str, svg: str, caption: str = "", wide: bool = False) -> str:
    """A chart under its title; the caption is HTML."""
    under = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{' class=wide' * wide}><h3>{escape(title)}</h3>{svg}{under}</figure>"


def lines(
    series: Sequence[Series],
    x_unit: str,
    *,
    shown: Text = number,
    bounds: tuple[float, float] | None = None,
    log: bool = False,
    whole: bool = True,
) -> str:
    """Draw lines.

    Args:
        x_unit: name and unit of the horizontal axis; that of the other one is in the title.
        bounds: of the vertical axis; else the values' own.
        log: the vertical axis is logarithmic if the values are far apart.
        whole: the horizontal axis counts.
    """
    finite = [(each, points) for each in series if (points := _finite(each.points))]
    every = [point for _, points in finite for point in points]
    if not every:
        return "<p class=muted>No finite number.</p>"
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    x = Scale(x_low if whole else 0.0, x_high, LEFT + 4, WIDTH - RIGHT - 4)
    if x_low == x_high and whole:
        x = Scale(x_low - 1, x_high + 1, x.start, x.end)
    start, end = HEIGHT - BOTTOM, TOP
    y = Scale(*bounds, start, end) if bounds else around((y for _, y in every), start, end, log=log)
    parts = [
        *grid(y, shown),
        *bottom(x, x_unit, [tick for tick in x.ticks(most=8, whole=whole) if x_low <= tick <= x_high or not whole]),
    ]
    for each, points in finite:
        parts += _line(each, points, x, y, shown)
    parts += _labels([(each, points[-1]) for each, points in finite], x, y)
    return drawing(parts)


def grid(y: Scale, shown: Text) -> Iterable[str]:
    """Horizontal lines with their values."""
    for tick in y.ticks():
        place = y(tick)
        yield f"<path class=grid d='M{LEFT} {place:.1f}H{WIDTH - RIGHT}'/>"
        yield f"<text x={LEFT - 6} y={place + 4:.1f} text-anchor=end>{escape(shown(tick))}</text>"


def bottom(x: Scale, unit: str, ticks: Iterable[float], height: float = HEIGHT) -> Iterable[str]:
    """The horizontal axis: values and their unit."""
    for tick in ticks:
        yield f"<text x={x(tick):.1f} y={height - BOTTOM + 16} text-anchor=middle>{number(tick)}</text>"
    yield f"<text class=unit x={(x.start + x.end) / 2:.1f} y={height - 4} text-anchor=middle>{escape(unit)}</text>"


def drawing(parts: Iterable[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    return f"<svg viewBox='0 0 {width:g} {height:g}' role=img>{''.join(parts)}</svg>"


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


def _line(each: Series, points: Sequence[tuple[float, float]], x: Scale, y: Scale, shown: Text) -> Iterable[str]:
    thin = -(-len(points) // MOST)
    drawn = [*points[:-1][::thin], *points[-1:]]
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in drawn)
    style = f"style='stroke:{each.color}'"
    yield f"<polyline class='line{' strong' * each.strong}' {style} points='{path}'><title>{escape(each.name)}</title></polyline>"
    if len(points) <= DOTS:
        for position, (a, b) in enumerate(points):
            color = each.dot_colors[position] if len(each.dot_colors) == len(points) else each.color
            said = f"{each.name}, {number(a)}: {shown(b)}"
            yield (
                f"<circle cx={x(a):.1f} cy={y(b):.1f} r={3.2 if each.strong else 2.4} style='fill:{color}'>"
                f"<title>{escape(said)}</title></circle>"
            )


def _labels(ends: Sequence[tuple[Series, tuple[float, float]]], x: Scale, y: Scale) -> Iterable[str]:
    labelled = sorted(((y(b), x(a), each) for each, (a, b) in ends if each.label), key=lambda end: end[0])
    places = spread((place for place, _, _ in labelled), LINE, TOP + 4, HEIGHT - BOTTOM)
    for place, (_, right, each) in zip(places, labelled, strict=True):
        bold = " font-weight=650" * each.strong
        at = f"x={right + 8:.1f} y={place + 4:.1f}"
        yield f"<text class=label {at}{bold} style='fill:{each.color}'>{escape(each.label)}</text>"


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    name: str
    parts: Sequence[tuple[str, float, str]]
    """Of each part: what it is, its length, its colour."""


def bars(rows: Sequence[Bar], shown: Text, left: float = LEFT) -> str:
    """Draw horizontal bars of several parts, with their sum beside them."""
    most = max(sum(length for _, length, _ in row.parts) for row in rows) or 1.0
    x = Scale(0.0, most, left, WIDTH - RIGHT - 12)
    parts, height = [], 4.0
    for row in rows:
        at = 0.0
        parts.append(f"<text x={left - 6} y={height + 12:.0f} text-anchor=end>{escape(row.name)}</text>")
        for what, length, color in row.parts:
            width, said = x(at + length) - x(at), f"{row.name}, {what}: {shown(length)}"
            parts.append(
                f"<rect x={x(at):.1f} y={height:.0f} width={width:.1f} height=15 style='fill:{color}'>"
                f"<title>{escape(said)}</title></rect>"
            )
            at += length
        parts.append(f"<text x={x(at) + 5:.1f} y={height + 12:.0f}>{escape(shown(at))}</text>")
        height += 21
    return drawing(parts, height=height)


def ranges(spans: Sequence[tuple[str, float, float, float, str]], x_unit: str) -> str:
    """Draw for each name its least, mean and greatest value, and its colour, from left to right."""
    x = Scale(-0.5, len(spans) - 0.5, LEFT + 4, WIDTH - RIGHT - 4)
    y = Scale(0.0, max(high for *_, high, _ in spans) or 1.0, HEIGHT - BOTTOM, TOP)
    parts = list(grid(y, number))
    for position, (name, low, mean, high, color) in enumerate(spans):
        at, said = x(position), f"{name}: {number(low)} to {number(high)}, mean {mean:.2f}"
        parts.append(
            f"<g style='stroke:{color};fill:{color}'><title>{escape(said)}</title>"
            f"<path class=range d='M{at:.1f} {y(low):.1f}V{y(high):.1f}'/>"
            f"<circle cx={at:.1f} cy={y(mean):.1f} r=4 /></g>"
        )
    parts += bottom(x, x_unit, [tick for tick in x.ticks(most=8, whole=True) if 0 <= tick < len(spans)])
    return drawing(parts)
