"""Losses at rising learning rates: a chart of text, a picture, and a table."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftly.report.charts import draw_rates, has_matplotlib
from peftly.utils import score_text, write_text

__all__ = ["rate_lines", "write_rates"]

_LINES, _WIDTH = 20, 40


def rate_lines(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Iterator[str]:
    """Yield the lines of a chart of text: a bar for the mean loss at each part of the learning rates.

    Args:
        rates, losses, smoothed, suggestion: fields of a `LearningRateTest`.
    """
    size = max(1, math.ceil(len(rates) / _LINES))
    starts = range(0, len(rates), size)
    means = [sum(losses[start : start + size]) / len(losses[start : start + size]) for start in starts]
    low, high = min(means), max(means)
    # A loss that explodes would hide all differences between the others.
    high = min(high, low + 4 * (means[0] - low)) if means[0] > low else high
    marked = 0 if suggestion is None else max(start for start in starts if start == 0 or rates[start] <= suggestion)
    yield "learning rate    loss"
    for start, mean in zip(starts, means, strict=True):
        share = min(1.0, (mean - low) / (high - low)) if high > low else 0.0
        mark = "  <- suggestion" if suggestion is not None and start == marked else ""
        yield f"{rates[start]:13.1e}  {score_text(mean):>6}  {'█' * (1 + round((_WIDTH - 1) * share))}{mark}"


def write_rates(
    folder: Path,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> list[str]:
    """Write the table `learning_rates.csv`, and with matplotlib the picture `learning_rates.png`.

    Args:
        folder: existing folder.
        rates, losses, smoothed, suggestion: fields of a `LearningRateTest`.

    Returns:
        Names of the files.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["learning_rate", "loss", "smoothed_loss"])
    writer.writerows(zip(rates, losses, smoothed, strict=True))
    write_text(folder / "learning_rates.csv", table.getvalue())
    if not has_matplotlib():
        return ["learning_rates.csv"]
    draw_rates(folder / "learning_rates.png", rates, losses, smoothed, suggestion)
    return ["learning_rates.png", "learning_rates.csv"]
