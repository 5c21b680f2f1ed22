"""One page that sets several runs side by side: those of a quickstart, the members of an ensemble, jobs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.report._page import machine_lines, read_json, render
from peftly.report.charts import bar_chart
from peftly.utils import bytes_text, count_text, score_text, seconds_text, share_text

if TYPE_CHECKING:
    from rich.table import Table

    from peftly.evaluation import Evaluation

__all__ = [
    "comparison_cells",
    "comparison_columns",
    "comparison_row",
    "comparison_table",
    "pick_samples",
    "write_comparison",
]

SAMPLES = 14
SHARES = {"accuracy": "accuracy", "macro-F1": "macro_f1", "entity F1": "entity_f1"}
"""Scores between 0 and 1, by what a reader calls them; which of them a run has depends on its task."""


def comparison_row(
    name: str,
    evaluation: "Evaluation | None",
    *,
    folder: str | None = None,
    parameters: int = 0,
    size: int = 0,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Return one row of a comparison as plain JSON values.

    Args:
        name: name of the row.
        evaluation: scores, if there are any.
        folder: name of the run folder; None for a row that was not trained by itself.
        parameters: number of trained parameters.
        size: bytes of the adapter on disk.
        seconds: duration of the training.
    """
    return {
        "name": name,
        "folder": folder,
        **{key: getattr(evaluation, key, None) for key in SHARES.values()},
        "loss": evaluation.loss if evaluation else None,
        "parameters": parameters,
        "bytes": size,
        "seconds": seconds,
        "predictions": [row.predicted for row in evaluation.predictions] if evaluation else [],
    }


def comparison_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the heads of a comparison's columns: the loss stands in for the scores of rows without labels."""
    scores = [name for name, key in SHARES.items() if any(row.get(key) is not None for row in rows)]
    if any(row["accuracy"] is None for row in rows):
        scores.append("loss")
    return [*scores, "trained parameters", "bytes on disk", "training time"]


def comparison_cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    """Return what stands in those columns for one row."""
    cells = {
        **{name: share_text(row.get(key)) for name, key in SHARES.items()},
        "loss": score_text(row.get("loss")),
        "trained parameters": count_text(row["parameters"]) if row["parameters"] else "—",
        "bytes on disk": bytes_text(row["bytes"]) if row["bytes"] else "—",
        "training time": "—" if row["seconds"] is None else seconds_text(row["seconds"]),
    }
    return [cells[column] for column in columns]


def comparison_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """Return a comparison as a table for the screen."""
    from rich.table import Table
    from rich.text import Text

    columns = comparison_columns(rows)
    table = Table("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(Text(row["name"]), *comparison_cells(row, columns))
    return table


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
        {
            row["name"]: {name: row[key] for name, key in SHARES.items() if row.get(key) is not None}
            for row in results["rows"]
        },
        title="Scores on the rows held out",
    )
    columns = comparison_columns(results["rows"])
    rows = [
        {
            "name": row["name"],
            "link": f"{row['folder']}/report.html" if row["folder"] else None,
            "cells": comparison_cells(row, columns),
        }
        for row in results["rows"]
    ]
    page = render(
        "comparison.html.jinja",
        title=results["title"],
        subtitle=results["subtitle"],
        columns=columns,
        rows=rows,
        chart=Markup(chart),  # noqa: S704 -- our own picture, whose text is escaped where it is drawn
        samples=pick_samples(results, SAMPLES) if results.get("texts") else [],
        data_lines=results["data"],
        environment=machine_lines(results["environment"]),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report
