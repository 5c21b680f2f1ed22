"""Tables of the speed benchmark for each device and dtype in the docs, and charts of the first device and dtype."""

import io
import json
import re
import statistics
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from speed_jobs import JOBS

__all__ = ["BEST", "CLASSIC", "FLOOR", "OURS", "PAGE", "PICTURES", "RESULTS", "picture", "read", "with_table", "write"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"
PICTURES = {"en": ROOT / "docs" / "speed.svg", "zh": ROOT / "docs" / "speed.zh.svg"}
"""Chart of each language."""
BEGIN, END = "<!-- table: speed -->\n", "<!-- end of table -->\n"
CLASSIC, BEST, OURS, FLOOR = "PEFT, classic", "PEFT, best", "peftly", "floor"
"""Names of the contenders."""

CHINESE = {"times as fast as PEFT's classic setting": "PEFT 常见设置的多少倍", BEST: "PEFT 最快设置", FLOOR: "下限"}
"""Chinese of the texts of the chart."""
COLOURS = {BEST: "#8c96a3", OURS: "#3b82c4", FLOOR: "#c3cad3"}
INK = "#78838f"  # read on white and on the ground of dark pages

Result = dict[str, Any]
"""Measurements of a job with one dtype on one device, as in the JSON."""


def read() -> list[Result]:
    """Return the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []


def write(results: list[Result]) -> None:
    """Write all results in the order of the page, and the page and its chart."""
    ordered = [result for _, group in groups(results) for result in group]
    text = json.dumps({"results": ordered}, indent=1)
    # The numbers of a list share a line.
    text = re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), ordered), encoding="utf-8")
    for language, file in PICTURES.items():
        file.write_text(picture(ordered, language), encoding="utf-8")


def groups(results: list[Result]) -> Iterator[tuple[tuple[str, str], list[Result]]]:
    """Yield each device and dtype with its results, in the order of the jobs."""
    for key in sorted({(result["device"], result["dtype"]) for result in results}):
        group = [result for result in results if (result["device"], result["dtype"]) == key]
        yield key, sorted(group, key=lambda result: list(JOBS).index(result["job"]))


def with_table(page: str, results: list[Result]) -> str:
    """Return the page with new tables."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    lines = [line for key, group in groups(results) for line in table(key, group)]
    return head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + tail


def table(key: tuple[str, str], results: list[Result]) -> Iterator[str]:
    """Yield the lines of the two tables of a device and dtype: times, then tokens, memory, losses and settings."""
    device, dtype = key
    yield f"## {dtype}, {device}\n\n{_machine(results[0])}\n"
    yield "| | job | PEFT, classic | PEFT, best | peftly | floor | × classic | aim | × best | aim | of the floor |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for result in results:
        cells = [
            result["job"],
            result["description"],
            *(_seconds(result, contender) for contender in (CLASSIC, BEST, OURS, FLOOR)),
        ]
        for contender in (CLASSIC, BEST):
            cells += [_ratio(result, contender), _aim(result, contender)]
        floor = result["ratios"].get(FLOOR)
        yield _table_row([*cells, f"{1 / floor['median']:.2f}" if floor else "-"])
    yield "\n| | tokens a second | MiB: classic | best | peftly | of classic | of best | losses | PEFT's best setting |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for result in results:
        speed = result["tokens"] / statistics.median(result["seconds"][OURS])
        cells = [
            result["job"],
            f"{speed:,.0f}",
            *(_mebibytes(result, contender) for contender in (CLASSIC, BEST, OURS)),
        ]
        cells += [_share(result, contender) for contender in (CLASSIC, BEST)]
        yield _table_row([*cells, _equality(result), result["settings"].get(BEST, "-")])
    yield ""


def _machine(result: Result) -> str:
    details = result["environment"]
    packages = ("torch", "transformers", "accelerate", "peft")
    versions = ", ".join(f"{package} {details['versions'][package]}" for package in packages)
    bf16 = f"bf16 instructions: {details['cpu_bf16'] or 'none'}"
    return f"{details['cpu_cores']} cores ({details['cpu']}, {details['cpu_capability']}, {bf16}); {versions}."


def _table_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(result: Result, contender: str) -> str:
    return f"{statistics.median(result['seconds'][contender]):.2f}" if contender in result["seconds"] else "-"


def _ratio(result: Result, contender: str) -> str:
    ratio = result["ratios"].get(contender)
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"


def _aim(result: Result, contender: str) -> str:
    if contender not in result["aims"] or contender not in result["ratios"]:
        return "-"
    return f"{result['aims'][contender]:g} " + ("✓" if reached(result, contender) else "✗")


def reached(result: Result, contender: str) -> bool:
    """Return whether the speed of peftly, relative to a rival, reaches its aim."""
    return bool(result["ratios"][contender]["median"] >= result["aims"][contender])


def _mebibytes(result: Result, contender: str) -> str:
    growth = result["memory"].get(contender)
    return "-" if growth is None else f"{growth / 2**20:,.0f}"


def _share(result: Result, contender: str) -> str:
    theirs, ours = result["memory"].get(contender), result["memory"].get(OURS)
    return f"{ours / theirs:.2f}" if theirs and ours is not None else "-"


def _equality(result: Result) -> str:
    if "same_texts" in result:
        return f"{result['same_texts']:.0%} of the texts the same"
    return f"{result['curve']['first_difference']:.0e}, {result['curve']['largest_difference']:.0e}"


def picture(results: list[Result], language: str) -> str:
    """Return a bar chart of the speeds on the first device and dtype, relative to PEFT's classic setting, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    (device, dtype), group = next(groups(results))
    figure = Figure(figsize=(7.2, 1.2 + 0.55 * len(group)), layout="constrained")
    axes = figure.add_subplot()
    for index, contender in enumerate((BEST, OURS, FLOOR)):
        measured = [(number, result) for number, result in enumerate(group) if contender in result["seconds"]]
        speeds = [_relative_speed(result, contender) for _, result in measured]
        offsets = [number + (index - 1) * 0.27 for number, _ in measured]
        # Bars start at 1: a bar to the left shows a contender that is slower than the classic setting.
        widths = [speed - 1 for speed in speeds]
        bars = axes.barh(offsets, widths, 0.25, left=1, color=COLOURS[contender], label=contender)
        axes.bar_label(bars, [f"{speed:.1f} ×" for speed in speeds], color=INK, padding=3, fontsize=8)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(axes.get_xlim()[0] / 1.2, axes.get_xlim()[1] * 1.4)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_yticks(range(len(group)), [result["job"] for result in group])
    axes.invert_yaxis()
    axes.set_title(f"times as fast as PEFT's classic setting ({dtype}, {device})", color=INK, fontsize=10)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=3, fontsize=8)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed", "font.family": "DejaVu Sans"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    svg = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")
    if language == "zh":
        # The texts are replaced in the SVG, since matplotlib's own font has no Chinese characters.
        for english, chinese in CHINESE.items():
            svg = re.sub(rf"(>\s*){re.escape(escape(english, quote=False))}(?=[ <])", rf"\g<1>{chinese}", svg)
    return "".join(f"{line.rstrip()}\n" for line in svg[svg.index("<svg") :].splitlines())


def _relative_speed(result: Result, contender: str) -> float:
    """Return the speed of a contender relative to PEFT's classic setting, as the median over the rounds."""
    pairs = zip(result["seconds"][CLASSIC], result["seconds"][contender], strict=True)
    return statistics.median(classic / other for classic, other in pairs)
