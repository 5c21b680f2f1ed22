"""Losses, perplexities and scores of each epoch, as a table for the page of a run."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from peftly.evaluation import perplexity_of
from peftly.utils import score_text, share_text

__all__ = ["EpochRows", "counts_tokens", "epoch_rows", "read_records"]

_SHARES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "entity_f1": "entity F1"}


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
    validation scores are those of the last evaluation in the epoch.

    Args:
        records: steps and evaluations, as `read_records` returns them.
        has_tokens: whether the targets of the loss are tokens, so that there is a perplexity.
    """
    steps, evaluations = _by_epoch(records, "step"), _by_epoch(records, "evaluation")
    names = {key: name for key, name in _SHARES.items() if any(record.get(key) is not None for record in records)}
    columns = ["epoch", "step", *_loss_columns("training", has_tokens)]
    if evaluations:
        columns += [*_loss_columns("validation", has_tokens), *names.values()]
    best = max((record["step"] for record in records if record.get("best")), default=None)
    rows, best_row = [], None
    for index, (number, of_epoch) in enumerate(steps.items()):
        last = of_epoch[-1]
        row = [f"{round(last['epoch'], 2):g}", str(last["step"]), *_losses(_mean_loss(of_epoch), has_tokens)]
        if evaluations:
            evaluated = evaluations.get(number, [{}])
            row += _losses(evaluated[-1].get("loss"), has_tokens)
            row += [share_text(evaluated[-1].get(key)) for key in names]
            if best in [record.get("step") for record in evaluated]:
                best_row = index
        rows.append(row)
    return EpochRows(columns, rows, best_row)


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


def _loss_columns(name: str, has_tokens: bool) -> list[str]:
    return [f"{name} loss", f"{name} perplexity"] if has_tokens else [f"{name} loss"]


def _losses(loss: float | None, has_tokens: bool) -> list[str]:
    """Return a loss, and the perplexity if there is one, as text."""
    return [score_text(loss), score_text(perplexity_of(loss))] if has_tokens else [score_text(loss)]
