"""A page, and a table for the screen, that compare several runs: quickstart, ensemble, jobs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from peftly.report.charts import bar_chart
from peftly.report.page import machine_lines, read_json, write_page
from peftly.utils import bytes_text, count_text, score_text, seconds_text, share_text

if TYPE_CHECKING:
    from peftly.evaluation import Evaluation

__all__ = ["comparison_note", "comparison_row", "comparison_table", "pick_samples", "write_comparison"]

_SAMPLES = 14
_SHARES = {"accuracy": "accuracy", "macro-F1": "macro_f1", "entity F1": "entity_f1"}
"""Scores between 0 and 1: displayed name and key. The task of a run determines which ones it has."""


def comparison_row(
    name: str,
    evaluation: "Evaluation | None",
    *,
    split: str | None = None,
    folder: str | None = None,
    parameters: int = 0,
    size: int = 0,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Return one row of a comparison as JSON values.

    Args:
        name: name of the row.
        evaluation: scores; None if there are none.
        split: split of the scores, "test" or "validation"; None: not known.
        folder: name of the run folder, for a link; None for a row without a run, such as the vote of an ensemble.
        parameters: number of trained parameters.
        size: size of the adapter on disk in bytes.
        seconds: duration of the training; None if nothing was trained.
    """
    return {
        "name": name,
        "folder": folder,
        "split": split,
        "examples": evaluation.rows if evaluation else None,
        **{key: getattr(evaluation, key, None) for key in _SHARES.values()},
        "loss": evaluation.loss if evaluation else None,
        "parameters": parameters,
        "bytes": size,
        "seconds": seconds,
        "predictions": [prediction.predicted for prediction in evaluation.predictions] if evaluation else [],
    }


def comparison_note(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return a line on the examples of the scores, and on how much an accuracy varies; None if the runs differ in them.

    Args:
        rows: rows as `comparison_row` makes them.
    """
    sources = {(row["split"], row["examples"]) for row in rows if row.get("split")}
    if len(sources) != 1:
        return None
    ((split, count),) = sources
    if not count:
        return None
    line = f"scores of {count:,} {split} examples"
    if split == "validation":
        line += ", which also chose the best weights, so new examples have lower scores on average"
    accuracies = [row["accuracy"] for row in rows if row.get("accuracy") is not None]
    if error := max((math.sqrt(share * (1 - share) / count) for share in accuracies), default=0.0):
        line += f"; two standard errors of an accuracy are {200 * error:.0f} points"
    if any(row.get("is_together") for row in rows):
        line += "; the training time is that of all runs together"
    return line


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a comparison as a table for the screen.

    Args:
        rows: rows as `comparison_row` makes them.
    """
    columns = _columns(rows)
    table = Table(Column("", overflow="fold"))  # long names differ at their ends
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(Text(row["name"]), *_cells(row, columns))
    return table


def pick_samples(results: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return examples of a comparison: about two thirds with different predictions, the others with equal ones.

    Args:
        results: results with `texts`, `gold` and the predictions of each row.
        count: maximum number of examples.
    """
    columns = [row["predictions"] for row in results["rows"]]
    samples = [
        {"text": text, "gold": gold, "predicted": list(predicted)}
        for text, gold, *predicted in zip(results["texts"], results["gold"], *columns, strict=True)
    ]
    different = [sample for sample in samples if len(set(sample["predicted"])) > 1]
    equal = [sample for sample in samples if len(set(sample["predicted"])) == 1]
    return (different[: max(count - count // 3, count - len(equal))] + equal)[:count]


def write_comparison(folder: str | Path, file: str) -> Path:
    """Write the comparison page of several runs, with links to the report of each run.

    Args:
        folder: folder of the page, which is called report.html.
        file: name of the JSON file in that folder with the results.

    Returns:
        Path of the page.
    """
    folder = Path(folder)
    results = read_json(folder / file)
    rows, columns = results["rows"], _columns(results["rows"])
    shares = {
        row["name"]: {name: row[key] for name, key in _SHARES.items() if row.get(key) is not None} for row in rows
    }
    return write_page(
        folder / "report.html",
        "comparison.html.jinja",
        title=results["title"],
        subtitle=results["subtitle"],
        note=comparison_note(rows),
        columns=columns,
        rows=[
            {
                "name": row["name"],
                "link": f"{row['folder']}/report.html" if row["folder"] else None,
                "cells": _cells(row, columns),
            }
            for row in rows
        ],
        chart=bar_chart(shares, title="Scores on held-out examples"),
        samples=pick_samples(results, _SAMPLES) if results.get("texts") else [],
        data_lines=results["data"],
        environment=machine_lines(results["environment"]),
    )


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the column names: the loss if some rows have no accuracy, and the base if there are several bases."""
    scores = [name for name, key in _SHARES.items() if any(row.get(key) is not None for row in rows)]
    if any(row["accuracy"] is None for row in rows):
        scores.append("loss")
    bases = ["base"] if any(row.get("base") for row in rows) else []
    return [*bases, *scores, "trained parameters", "bytes on disk", "training time"]


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the cells of a row."""
    cells = {
        **{name: share_text(row.get(key)) for name, key in _SHARES.items()},
        "base": row.get("base", ""),
        "loss": score_text(row.get("loss")),
        "trained parameters": count_text(row["parameters"]) if row["parameters"] else "—",
        "bytes on disk": bytes_text(row["bytes"]) if row["bytes"] else "—",
        "training time": "—" if row["seconds"] is None else seconds_text(row["seconds"]),
    }
    return [cells[column] for column in columns]
