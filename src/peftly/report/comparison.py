"""One page that sets the runs of a quickstart side by side."""

from pathlib import Path
from typing import Any

from peftly._units import bytes_text, count_text, seconds_text, share_text
from peftly.report._page import machine_lines, read_json, render
from peftly.report.charts import bar_chart

__all__ = ["COLUMNS", "comparison_cells", "pick_samples", "write_comparison"]

COLUMNS = ("accuracy", "macro-F1", "trained parameters", "bytes on disk", "training time")
SAMPLES = 14


def comparison_cells(row: dict[str, Any]) -> list[str]:
    """Return what stands under `COLUMNS` for one row of a comparison."""
    return [
        share_text(row["accuracy"]),
        share_text(row["macro_f1"]),
        count_text(row["parameters"]) if row["parameters"] else "—",
        bytes_text(row["bytes"]) if row["bytes"] else "—",
        "—" if row["seconds"] is None else seconds_text(row["seconds"]),
    ]


def pick_samples(results: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Pick rows that show both: those that the systems disagree on, and as many that they agree on."""
    columns = [row["predictions"] for row in results["rows"]]
    rows = [
        {"text": text, "gold": gold, "predicted": list(predicted)}
        for text, gold, *predicted in zip(results["texts"], results["gold"], *columns, strict=True)
    ]
    apart = [row for row in rows if len(set(row["predicted"])) > 1]
    alike = [row for row in rows if len(set(row["predicted"])) == 1]
    return (apart[: max(count - count // 3, count - len(alike))] + alike)[:count]


def write_comparison(folder: str | Path, file: str = "quickstart.json") -> Path:
    """Write `report.html` in `folder` from the results there, with links to the report of each run."""
    from markupsafe import Markup

    folder = Path(folder)
    results = read_json(folder / file)
    chart = bar_chart(
        {row["name"]: {"accuracy": row["accuracy"], "macro-F1": row["macro_f1"]} for row in results["rows"]},
        title="Accuracy and macro-F1 on the test split",
    )
    rows = [
        {
            "name": row["name"],
            "link": f"{row['folder']}/report.html" if row["folder"] else None,
            "cells": comparison_cells(row),
        }
        for row in results["rows"]
    ]
    page = render(
        "comparison.html.jinja",
        title="peftly quickstart",
        subtitle=f"{results['task']} {results['base']}, {len(results['gold'])} test rows, seed {results['seed']}",
        columns=COLUMNS,
        rows=rows,
        chart=Markup(chart),  # noqa: S704 -- our own picture, whose text is escaped where it is drawn
        samples=pick_samples(results, SAMPLES),
        data_lines=results["data"],
        environment=machine_lines(results["environment"]),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report
