"""Losses, perplexities, scores and duration of each epoch, as a table for the page of a run and for the screen."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from peftly.evaluation import perplexity_of
from peftly.utils import score_text, share_text

__all__ = ["EpochRows", "counts_tokens", "epoch_rows", "epoch_table", "read_records"]

_SHARES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "entity_f1": "entity F1"}


_SHOWN = 24
"""Number of epochs on the screen from which on those in the middle of a run are left out."""


class EpochRows(NamedTuple):
    """A table with one row for each epoch.

    Attributes:
        columns: names of the columns.
        rows: cells of each epoch.
        best: index of the row with the best evaluation; None without evaluations.
    """

    columns: list[str]
    rows: list[list[str]]
    best: int | None


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """Return the steps and evaluations in a file of metrics. Lines that a disk has damaged are left out."""
    records = []
    for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(line)
            if record["kind"] in ("step", "evaluation") and isinstance(record["step"], int):
                records.append({**record, "loss": record["loss"]})
    return records


def epoch_rows(records: Sequence[dict[str, Any]], *, has_tokens: bool) -> EpochRows:
    """Return the table of a run.

    The training loss of an epoch is the mean over its targets, each computed before the update of its step. The
    validation scores are those of the last evaluation in the epoch, and the seconds include all its evaluations.

    Args:
        records: steps and evaluations, as `read_records` returns them.
        has_tokens: whether the targets of the loss are tokens, so that there is a perplexity.
    """
    steps, evaluations = _by_epoch(records, "step"), _by_epoch(records, "evaluation")
    names = {key: name for key, name in _SHARES.items() if any(record.get(key) is not None for record in records)}
    columns = ["epoch", "step", *_loss_columns("training", has_tokens=has_tokens)]
    if evaluations:
        columns += [*_loss_columns("validation", has_tokens=has_tokens), *names.values()]
    columns.append("seconds")
    best = max((record["step"] for record in records if record.get("best")), default=None)
    rows, best_row, ended = [], None, 0.0
    for index, (number, of_epoch) in enumerate(steps.items()):
        last = of_epoch[-1]
        row = [f"{round(last['epoch'], 2):g}", str(last["step"]), *_losses(_mean_loss(of_epoch), has_tokens)]
        if evaluations:
            evaluated = evaluations.get(number, [{}])
            row += _losses(evaluated[-1].get("loss"), has_tokens)
            row += [share_text(evaluated[-1].get(key)) for key in names]
            if best in [record.get("step") for record in evaluated]:
                best_row = index
        times = [record.get("seconds") for record in (*of_epoch, *evaluations.get(number, []))]
        ends = max((time for time in times if isinstance(time, int | float)), default=ended)
        row.append(f"{ends - ended:,.1f}" if ends > ended else "—")
        ended = ends
        rows.append(row)
    return EpochRows(columns, rows, best_row)


def epoch_table(runs: Mapping[str, Path]) -> Table | None:
    """Return the epochs of one or several runs as one table for the screen; None if there are no records.

    Of many epochs, the first, the best and the last ones are shown.

    Args:
        runs: run folders by the name of the run, which has a column of its own if there are several.
    """
    found = {name: _rows_of(folder) for name, folder in runs.items()}
    losses = [name for split in ("training", "validation") for name in _loss_columns(split, has_tokens=True)]
    of_runs = {name for epochs in found.values() for name in epochs.columns}
    columns = [name for name in ("epoch", *losses, *_SHARES.values(), "seconds") if name in of_runs]
    if len(runs) > 1:
        columns = [name for name in columns if name != _SHARES["macro_f1"]]
    # Widths are those of the longest words, so that the table fits on 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    if len(runs) > 1:
        table.add_column("run", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    table.add_column("")
    for name, epochs in found.items():
        for index in _shown(epochs, _SHOWN // len(runs)):
            row = {} if index is None else dict(zip(epochs.columns, epochs.rows[index], strict=True))
            cells = [row.get(column, "…" if index is None else "—") for column in columns]
            is_best = index is not None and index == epochs.best
            table.add_row(*[name] * (len(runs) > 1), *cells, "best" if is_best else "")
    return table if table.rows else None


def _rows_of(run_folder: Path) -> EpochRows:
    return epoch_rows(read_records(run_folder / "metrics.jsonl"), has_tokens=counts_tokens(run_folder))


def _shown(epochs: EpochRows, limit: int) -> Iterator[int | None]:
    """Yield the indices of the rows to show, with None for rows that are left out."""
    count, half = len(epochs.rows), max(1, limit // 2)
    for index in range(count):
        if count <= max(3, limit) or index < half or index >= count - half or index == epochs.best:
            yield index
        elif index - 1 in (half - 1, epochs.best):
            yield None


def counts_tokens(run_folder: Path) -> bool:
    """Return whether the loss of a run is over tokens, by its data report."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run_folder / "data.json").read_text(encoding="utf-8"))
        return bool(content["splits"]["train"]["unit"] == "token")
    return False


def _by_epoch(records: Sequence[dict[str, Any]], kind: str) -> dict[int, list[dict[str, Any]]]:
    """Return the records of a kind by the number of their epoch, from 1."""
    found: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == kind and isinstance(record.get("epoch"), int | float):
            found.setdefault(max(1, math.ceil(record["epoch"])), []).append(record)
    return found


def _mean_loss(steps: Sequence[dict[str, Any]]) -> float | None:
    counted = [(step["loss"], step.get("trained_tokens") or 1) for step in steps if step["loss"] is not None]
    return sum(loss * count for loss, count in counted) / sum(count for _, count in counted) if counted else None


def _loss_columns(name: str, *, has_tokens: bool) -> list[str]:
    return [f"{name} loss", f"{name} perplexity"] if has_tokens else [f"{name} loss"]


def _losses(loss: float | None, has_tokens: bool) -> list[str]:
    """Return a loss, and the perplexity if there is one, as text."""
    return [score_text(loss), score_text(perplexity_of(loss))] if has_tokens else [score_text(loss)]
