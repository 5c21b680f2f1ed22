"""Pictures as inline SVG: text stays text, and every colour is a CSS variable of the page, light or dark."""

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bar_chart", "line_chart"]

# Matplotlib writes colours as hex; these stand for the page's own and are replaced in its output.
PLACEHOLDERS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "first": "#010206",
    "second": "#010207",
    "third": "#010208",
}
SERIES = ("first", "second", "third")
SMOOTH_FROM = 60  # points; a shorter curve is readable as it is

Point = tuple[float, float]


def line_chart(series: dict[str, Sequence[Point]], *, title: str, x_label: str, y_label: str) -> str:
    """Draw curves over one pair of axes.

    Args:
        series: points by name; a long curve gets its running mean drawn over it.
        title: what the picture shows, for a reader who does not see it.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.

    Returns:
        An `<svg>` element, or "" if there is no point to draw.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    figure, axes = _axes()
    for colour, (name, points) in zip(SERIES, series.items(), strict=False):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        smooth = len(points) >= SMOOTH_FROM
        marker = "o" if len(points) < 30 else None
        plain = {"alpha": 0.35, "linewidth": 1.0} if smooth else {"linewidth": 1.8, "label": name}
        axes.plot(xs, ys, color=PLACEHOLDERS[colour], marker=marker, markersize=4, **plain)
        if smooth:
            axes.plot(xs, _running_mean(ys), color=PLACEHOLDERS[colour], linewidth=2.0, label=name)
    axes.set_xlim(left=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color=PLACEHOLDERS["line"], linewidth=0.8)
    axes.legend(frameon=False, labelcolor=PLACEHOLDERS["ink"])
    told = "; ".join(
        f"{name}: {points[0][1]:.3g} at {x_label} {points[0][0]:g}, {points[-1][1]:.3g} at {points[-1][0]:g}"
        for name, points in series.items()
    )
    return _svg(figure, title, told)


def bar_chart(groups: dict[str, dict[str, float]], *, title: str) -> str:
    """Draw shares between 0 and 1 as bars, one group a name, one bar a measure that the group has.

    Returns:
        An `<svg>` element, or "" if there is nothing to draw.
    """
    groups = {name: values for name, values in groups.items() if values}
    measures = list(dict.fromkeys(measure for values in groups.values() for measure in values))
    if not measures:
        return ""
    figure, axes = _axes()
    width = 0.8 / len(measures)
    for index, (colour, measure) in enumerate(zip(SERIES, measures, strict=False)):
        places = [group + (index - (len(measures) - 1) / 2) * width for group in range(len(groups))]
        heights = [values.get(measure) for values in groups.values()]
        bars = axes.bar(
            places, [height or 0 for height in heights], width * 0.92, color=PLACEHOLDERS[colour], label=measure
        )
        shown = ["" if height is None else f"{height:.0%}" for height in heights]
        axes.bar_label(bars, shown, color=PLACEHOLDERS["ink"], padding=2)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylim(0, 1.22)
    axes.grid(axis="y", color=PLACEHOLDERS["line"], linewidth=0.8)
    axes.legend(frameon=False, labelcolor=PLACEHOLDERS["ink"], loc="upper left", ncols=len(measures))
    told = "; ".join(
        f"{name}: " + ", ".join(f"{measure} {value:.1%}" for measure, value in values.items())
        for name, values in groups.items()
    )
    return _svg(figure, title, told)


def _axes() -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PLACEHOLDERS["muted"])
    axes.tick_params(color=PLACEHOLDERS["line"], labelcolor=PLACEHOLDERS["muted"])
    axes.xaxis.label.set_color(PLACEHOLDERS["muted"])
    axes.yaxis.label.set_color(PLACEHOLDERS["muted"])
    return figure, axes


def _running_mean(values: Sequence[float], window: int = 15) -> list[float]:
    """Return the mean of each value and its neighbours, so that the curve has no lag."""
    half = window // 2
    spans = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def _svg(figure: "Figure", title: str, told: str) -> str:
    """Return the figure as an `<svg>` that belongs in a page: no prologue, no fixed size, a title and a description."""
    import matplotlib

    buffer = io.StringIO()
    # Element ids come from this salt: two pictures on one page must not share them, and two runs must not differ.
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture = buffer.getvalue()
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r"\s*<metadata>.*?</metadata>", "", picture, flags=re.DOTALL)
    picture = picture.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for name, colour in PLACEHOLDERS.items():
        picture = picture.replace(colour, f"var(--{name})")
    opening = re.match(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", picture)
    if opening is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg viewBox="{opening[1]}" role="img" xmlns="http://www.w3.org/2000/svg" '
    head += f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{html.escape(title)}</title><desc>{html.escape(told)}</desc>'
    return head + picture[opening.end() :]
