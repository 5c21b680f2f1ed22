"""What the docs show of the speed benchmark: a table for each device and dtype, and a picture of the first of them."""

import io
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speed_jobs import JOBS

__all__ = ["BEST", "CLASSIC", "FLOOR", "OURS", "PAGE", "PICTURE", "RESULTS", "picture", "read", "with_table", "write"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"
PICTURE = ROOT / "docs" / "speed.svg"
BEGIN, END = "<!-- table: speed -->\n", "<!-- end of table -->\n"
CLASSIC, BEST, OURS, FLOOR = "PEFT, classic", "PEFT, best", "peftly", "floor"
"""The contenders."""

COLOURS = {BEST: "#b0b7bf", OURS: "#2f6fb0", FLOOR: "#dfe3e8"}
INK = "#5c6570"

Line = dict[str, Any]


def read() -> list[Line]:
    """Return the lines that are there."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["lines"] if RESULTS.exists() else []


def write(lines: list[Line]) -> None:
    """Write all lines, in the order of the page, and the page and its picture."""
    ordered = [line for _, own in groups(lines) for line in own]
    written = json.dumps({"lines": ordered}, indent=1)
    # Numbers of one list stand in one line.
    written = re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", written)
    RESULTS.write_text(written + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), ordered), encoding="utf-8")
    PICTURE.write_text(picture(ordered), encoding="utf-8")


def groups(lines: list[Line]) -> Iterator[tuple[tuple[str, str], list[Line]]]:
    """Yield the lines of each device and dtype, in the order of the jobs."""
    for place in sorted({(line["device"], line["dtype"]) for line in lines}):
        own = [line for line in lines if (line["device"], line["dtype"]) == place]
        yield place, sorted(own, key=lambda line: list(JOBS).index(line["job"]))


def with_table(page: str, lines: list[Line]) -> str:
    """Return the page with its tables made anew."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return (
        head
        + BEGIN
        + "\n"
        + "\n".join(part for place, own in groups(lines) for part in table(place, own))
        + "\n"
        + END
        + tail
    )


def table(place: tuple[str, str], lines: list[Line]) -> Iterator[str]:
    """Yield the lines of a device's and dtype's tables: seconds and ratios, then what else was looked at."""
    device, dtype = place
    yield f"## {dtype}, {device}\n\n{_machine(lines[0])}\n"
    yield "| | job | PEFT, classic | PEFT, best | peftly | floor | × classic | aim | × best | aim | of the floor |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for line in lines:
        cells = [line["job"], line["says"], *(_seconds(line, who) for who in (CLASSIC, BEST, OURS, FLOOR))]
        for who in (CLASSIC, BEST):
            cells += [_ratio(line, who), _aim(line, who)]
        floor = line["ratios"].get(FLOOR)
        yield _row([*cells, f"{1 / floor['median']:.2f}" if floor else "-"])
    yield "\n| | tokens a second | MiB: classic | best | peftly | of classic | of best | losses | PEFT's best setting |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for line in lines:
        speed = line["tokens"] / statistics.median(line["seconds"][OURS])
        cells = [line["job"], f"{speed:,.0f}", *(_mebibytes(line, who) for who in (CLASSIC, BEST, OURS))]
        cells += [_share(line, who) for who in (CLASSIC, BEST)]
        yield _row([*cells, _equality(line), line["settings"].get(BEST, "-")])
    yield ""


def _machine(line: Line) -> str:
    found = line["environment"]
    versions = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "accelerate", "peft")
    )
    bf16 = f"bf16 instructions: {found['cpu_bf16'] or 'none'}"
    return f"{found['cpu_cores']} cores ({found['cpu']}, {found['cpu_capability']}, {bf16}); {versions}."


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(line: Line, who: str) -> str:
    return f"{statistics.median(line['seconds'][who]):.2f}" if who in line["seconds"] else "-"


def _ratio(line: Line, who: str) -> str:
    found = line["ratios"].get(who)
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else "-"


def _aim(line: Line, who: str) -> str:
    if who not in line["aims"] or who not in line["ratios"]:
        return "-"
    return f"{line['aims'][who]:g} " + ("✓" if reached(line, who) else "✗")


def reached(line: Line, who: str) -> bool:
    """Whether peftly is as many times as fast as a rival as it was to be."""
    return bool(line["ratios"][who]["median"] >= line["aims"][who])


def _mebibytes(line: Line, who: str) -> str:
    growth = line["memory"].get(who)
    return "-" if growth is None else f"{growth / 2**20:,.0f}"


def _share(line: Line, who: str) -> str:
    theirs, ours = line["memory"].get(who), line["memory"].get(OURS)
    return f"{ours / theirs:.2f}" if theirs and ours is not None else "-"


def _equality(line: Line) -> str:
    if "same_texts" in line:
        return f"{line['same_texts']:.0%} of the texts the same"
    return f"{line['curve']['first_difference']:.0e}, {line['curve']['largest_difference']:.0e}"


def picture(lines: list[Line]) -> str:
    """Draw how many times as fast as PEFT's classic setting the others are, on the first device and dtype, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    (device, dtype), own = next(groups(lines))
    figure = Figure(figsize=(7.2, 1.2 + 0.55 * len(own)), layout="constrained")
    axes = figure.add_subplot()
    for index, who in enumerate((BEST, OURS, FLOOR)):
        shown = [(place, line) for place, line in enumerate(own) if who in line["seconds"]]
        lengths = [_against_classic(line, who) for _, line in shown]
        places = [place + (index - 1) * 0.27 for place, _ in shown]
        # From 1 on, so that a bar to the left is a loss.
        bars = axes.barh(places, [length - 1 for length in lengths], 0.25, left=1, color=COLOURS[who], label=who)
        axes.bar_label(bars, [f"{length:.1f} ×" for length in lengths], color=INK, padding=3, fontsize=8)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(axes.get_xlim()[0] / 1.2, axes.get_xlim()[1] * 1.4)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_yticks(range(len(own)), [line["job"] for line in own])
    axes.invert_yaxis()
    axes.set_title(f"times as fast as PEFT's classic setting ({dtype}, {device})", color=INK, fontsize=10)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=3, fontsize=8)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed", "font.family": "DejaVu Sans"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata)
    drawn = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")
    return "".join(f"{row.rstrip()}\n" for row in drawn[drawn.index("<svg") :].splitlines())


def _against_classic(line: Line, who: str) -> float:
    """Return the median over the rounds of how many times as fast as PEFT's classic setting another is."""
    pairs = zip(line["seconds"][CLASSIC], line["seconds"][who], strict=True)
    return statistics.median(classic / other for classic, other in pairs)
