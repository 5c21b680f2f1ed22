"""Small charts as SVG: lines and bars, in colours that are readable on light and on dark ground."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Line", "bar_chart", "line_chart"]

INK = "#7b838d"
COLOURS = ("#3d7fc4", "#d0722b", "#3f9a5f", "#a760b8")
WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 46, 52


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: name beside its last point.
        points: pairs of x and y.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """Return a chart of lines with a logarithmic y axis. The x values are whole numbers, each of which has a tick."""
    ticks = sorted({x for line in lines for x, _ in line.points})
    values = [y for line in lines for _, y in line.points]
    levels = _logarithmic_ticks(min(values), max(values))
    low, high = math.log(levels[0]), math.log(levels[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        span = (ticks[-1] - ticks[0]) or 1
        return LEFT + 20 + (x - ticks[0]) / span * (WIDTH - LEFT - RIGHT - 40), _height(math.log(y), low, high)

    parts = _axes(title, x_name, y_name, {level: _height(math.log(level), low, high) for level in levels})
    parts += [_text(at(tick, levels[0])[0], HEIGHT - BOTTOM + 18, f"{tick:g}", "middle") for tick in ticks]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
        x = LEFT + 12 + number * (WIDTH - LEFT - RIGHT) / len(lines)
        parts.append(f'<rect x="{x:.1f}" y="30" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(x + 20, 36, line.name, "start"))
    return _svg(title, parts)


def bar_chart(
    title: str, y_name: str, bars: Sequence[tuple[str, float]], *, reference: tuple[str, float] | None = None
) -> str:
    """Return a chart of bars from 0 on, with their values in them.

    Args:
        title: title of the chart.
        y_name: name of the values.
        bars: names and values.
        reference: name and value of a dashed line across the chart.
    """
    values = [value for _, value in bars] + ([reference[1]] if reference else [])
    levels = _ticks(0, max(values))
    low, high = levels[0], levels[-1]
    parts = _axes(title, "", y_name, {level: _height(level, low, high) for level in levels})
    step = (WIDTH - LEFT - RIGHT) / len(bars)
    for number, (name, value) in enumerate(bars):
        middle, y = LEFT + (number + 0.5) * step, _height(value, low, high)
        parts.append(
            f'<rect x="{middle - 0.3 * step:.1f}" y="{y:.1f}" width="{0.6 * step:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}" fill="{COLOURS[0]}"/>'
        )
        parts.append(_text(middle, HEIGHT - BOTTOM - 10, f"{value:g}", "middle", colour="#ffffff"))
        parts += [
            _text(middle, HEIGHT - BOTTOM + 18 + 15 * row, line, "middle") for row, line in enumerate(name.split("\n"))
        ]
    if reference:
        y = _height(reference[1], low, high)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLOURS[1]}" '
            'stroke-width="2" stroke-dasharray="6 4"/>'
        )
        parts.append(f'<rect x="{LEFT + 12}" y="30" width="14" height="4" fill="{COLOURS[1]}"/>')
        parts.append(_text(LEFT + 32, 36, f"{reference[0]}: {reference[1]:g}", "start"))
    return _svg(title, parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return round values from at most `low` to at least `high`, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten from at most `low` to at least `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [round(factor * 10.0**power, 10) for power in powers for factor in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick <= low)
    last = min(index for index, tick in enumerate(ticks) if tick >= high)
    return ticks[first : max(last, first + 1) + 1]


def _height(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(title: str, x_name: str, y_name: str, levels: Mapping[float, float]) -> list[str]:
    """Return title, names of the axes, and grid lines; `levels` has their heights by value."""
    parts = [_text(WIDTH / 2, 18, title, "middle", weight="600")]
    for value, y in levels.items():
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-opacity="0.35"/>'
        )
        parts.append(_text(LEFT - 8, y + 4, f"{value:g}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(16, middle, y_name, "middle", turned=True))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name, "middle"))
    return parts


def _text(
    x: float, y: float, text: str, anchor: str, *, weight: str = "400", turned: bool = False, colour: str = INK
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"{turn}>'
        f"{escape(text)}</text>"
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>", ""])
