"""Charts as inline SVG with selectable text; all colours are CSS variables of the page, for light and dark mode.

Only this module uses matplotlib. Pages are complete without it, except for their charts.
"""

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bar_chart", "draw_rates", "has_matplotlib", "line_chart"]

# matplotlib writes colours as hexadecimal numbers. The chart is drawn in these colours, which are then replaced by the
# CSS variables of the page.
_PLACEHOLDERS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "first": "#010206",
    "second": "#010207",
    "third": "#010208",
}
_SERIES = ("first", "second", "third")
_SMOOTH_FROM = 60
"""Number of points from which a curve is drawn with its running mean; shorter curves are readable without it, and so
are those that only rise."""

_LARGE, _TALL, _SMALL = (7.2, 3.4), (7.2, 5.2), (3.6, 2.3)
"""Sizes of charts in inches."""

_ROOM_FOR_BARS, _ROOM_FOR_NAMES = 12, 60
"""Number of bars, and of characters of their names, that stand side by side on a large chart."""

_SHARES = (0, 0.25, 0.5, 0.75, 1)
_SHARE_NAMES = ("0%", "25%", "50%", "75%", "100%")

_MISSING = "Charts need matplotlib: pip install 'peftly[report]'"

T = TypeVar("T")
Point = tuple[float, float | None]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    is_share: bool = False,
    is_small: bool = False,
) -> Markup:
    """Draw curves with common axes.

    Args:
        series: points (x, y) of each curve by name. Points whose y is None, infinite or NaN are left out.
        title: title for screen readers.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        is_share: whether y is a share from 0 to 1, which the axis shows whole, in percent.
        is_small: whether the chart stands beside others: its axis of y begins at 0, and names the only curve.

    Returns:
        An `<svg>` element; empty without points; a line of text if matplotlib is not installed.
    """
    curves = {name: finite for name, points in series.items() if (finite := _finite(points))}
    if not curves:
        return Markup()
    if not has_matplotlib():
        return _missing_line()
    figure, axes = _axes(_SMALL if is_small else _LARGE)
    for colour, (name, points) in zip(_SERIES, curves.items(), strict=False):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        is_smoothed = len(points) >= _SMOOTH_FROM and ys != sorted(ys)
        marker = "o" if len(points) < 30 else None
        style = {"alpha": 0.35, "linewidth": 1.0} if is_smoothed else {"linewidth": 1.8, "label": name}
        axes.plot(xs, ys, color=_PLACEHOLDERS[colour], marker=marker, markersize=4, **style)
        if is_smoothed:
            axes.plot(xs, _running_mean(ys), color=_PLACEHOLDERS[colour], linewidth=2.0, label=name)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    if is_share:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks(_SHARES, _SHARE_NAMES)
    if is_small:
        highest = max(y for points in curves.values() for _, y in points)
        axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)  # the margin of a narrow range would cut the curve
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color=_PLACEHOLDERS["line"], linewidth=0.8)
    if not is_small:
        axes.legend(frameon=False, labelcolor=_PLACEHOLDERS["ink"])
    description = "; ".join(
        f"{name}: {points[0][1]:.3g} at {x_label} {points[0][0]:g}, {points[-1][1]:.3g} at {points[-1][0]:g}"
        for name, points in curves.items()
    )
    return _svg(figure, title, description)


def bar_chart(groups: Mapping[str, Mapping[str, float | None]], *, title: str) -> Markup:
    """Draw groups of bars with shares between 0 and 1.

    Args:
        groups: shares of each group by the name of the measure; measures may be missing, or NaN, in some groups.
        title: title for screen readers.

    Returns:
        An `<svg>` element; empty without shares; a line of text if matplotlib is not installed.
    """
    bars_of = {name: finite for name, shares in groups.items() if (finite := dict(_finite(shares.items())))}
    measures = list(dict.fromkeys(measure for shares in bars_of.values() for measure in shares))
    if not measures:
        return Markup()
    if not has_matplotlib():
        return _missing_line()
    is_slanted = sum(map(len, bars_of)) > _ROOM_FOR_NAMES
    figure, axes = _axes(_TALL if is_slanted else _LARGE)
    width = 0.8 / len(measures)
    for index, (colour, measure) in enumerate(zip(_SERIES, measures, strict=False)):
        positions = [group + (index - (len(measures) - 1) / 2) * width for group in range(len(bars_of))]
        heights = [shares.get(measure) for shares in bars_of.values()]
        bars = axes.bar(
            positions, [height or 0 for height in heights], width * 0.92, color=_PLACEHOLDERS[colour], label=measure
        )
        labels = ["" if height is None else f"{height:.0%}" for height in heights]
        size = 10 if len(bars_of) * len(measures) <= _ROOM_FOR_BARS else 6
        axes.bar_label(bars, labels, color=_PLACEHOLDERS["ink"], padding=2, fontsize=size)
    axes.set_xticks(
        range(len(bars_of)),
        list(bars_of),
        parse_math=False,  # a name may have dollar signs
        rotation=30 if is_slanted else 0,
        ha="right" if is_slanted else "center",
    )
    axes.set_yticks(_SHARES, _SHARE_NAMES)
    axes.set_ylim(0, 1.22)
    axes.grid(axis="y", color=_PLACEHOLDERS["line"], linewidth=0.8)
    legend = {"loc": "lower left", "bbox_to_anchor": (0, 1)} if is_slanted else {"loc": "upper left"}
    axes.legend(frameon=False, labelcolor=_PLACEHOLDERS["ink"], ncols=len(measures), **legend)
    description = "; ".join(
        f"{name}: " + ", ".join(f"{measure} {share:.1%}" for measure, share in shares.items())
        for name, shares in bars_of.items()
    )
    return _svg(figure, title, description)


def draw_rates(
    file: Path, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> None:
    """Draw the losses at rising learning rates as a PNG file, on a white background.

    Args:
        file: file to write.
        rates, losses, smoothed, suggestion: fields of a `LearningRateTest`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="#2563c9", alpha=0.35, linewidth=1, label="loss of a step")
    axes.plot(rates, smoothed, color="#2563c9", linewidth=2, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="#c2570c", linestyle="--", label=f"suggestion: {suggestion:g}")
    axes.set_xscale("log")
    top, bottom = min(max(losses), 2.5 * smoothed[0]), min(losses)  # a loss that explodes would hide the fall before it
    margin = 0.05 * abs(top - bottom)
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color="#d9dee4", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=150)


def _finite(pairs: Iterable[tuple[T, float | None]]) -> list[tuple[T, float]]:
    return [(key, value) for key, value in pairs if value is not None and math.isfinite(value)]


def has_matplotlib() -> bool:
    """Return whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _missing_line() -> Markup:
    return Markup('<p class="muted">{}</p>').format(_MISSING)


def _axes(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_PLACEHOLDERS["muted"])
    axes.tick_params(color=_PLACEHOLDERS["line"], labelcolor=_PLACEHOLDERS["muted"])
    axes.xaxis.label.set_color(_PLACEHOLDERS["muted"])
    axes.yaxis.label.set_color(_PLACEHOLDERS["muted"])
    return figure, axes


def _running_mean(values: Sequence[float], window: int = 15) -> list[float]:
    """Return the mean of each value and its neighbours on both sides, so that the curve has no lag."""
    half = window // 2
    spans = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def _svg(figure: "Figure", title: str, description: str) -> Markup:
    """Return a figure as an `<svg>` element for a page: no prologue, no fixed size, with title and description."""
    import matplotlib

    buffer = io.StringIO()
    # matplotlib derives element ids from the salt: ids must differ between the charts of a page, and be reproducible.
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"\s*<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    picture = picture.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for name, colour in _PLACEHOLDERS.items():
        picture = picture.replace(colour, f"var(--{name})")
    opening = re.match(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", picture)
    if opening is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg viewBox="{opening[1]}" role="img" xmlns="http://www.w3.org/2000/svg" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    head += f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    return Markup(head + picture[opening.end() :])  # noqa: S704 -- matplotlib and html.escape have escaped all text
