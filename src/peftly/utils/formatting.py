"""Numbers as text, the same on the screen and in reports."""

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["bytes_text", "count_text", "parameters_text", "score_rows", "score_text", "seconds_text", "share_text"]


def bytes_text(size: float | None) -> str:
    """Return a size such as `18.4 KB` (1 KB = 1000 bytes), or `—` for None."""
    if size is None:
        return "—"
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(4, int(math.log10(size)) // 3)
    return f"{size / 1000**power:.3g} {('KB', 'MB', 'GB', 'TB')[power - 1]}"


def count_text(count: int) -> str:
    """Return a count with commas between its thousands."""
    return f"{count:,}"


def parameters_text(trainable: int, total: int) -> str:
    """Return the trainable parameters of a model such as `921,600 trainable of 135,436,608 parameters (0.68%)`."""
    return f"{trainable:,} trainable of {total:,} parameters ({100 * trainable / total:.3g}%)"


def seconds_text(seconds: float) -> str:
    """Return a duration such as `7.3 s`, `4 min 05 s` or `2 h 10 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def share_text(share: float | None) -> str:
    """Return a share as a percentage such as `83.7%`; see `score_text` for None and NaN."""
    return score_text(share) if share is None or math.isnan(share) else f"{share:.1%}"


def score_text(value: float | None) -> str:
    """Return a loss or a perplexity with four significant digits, `—` for None, or `not a number` for NaN."""
    return "—" if value is None else _NAN if math.isnan(value) else f"{value:.4g}"


_NAN = "not a number"


def _count_or_nothing(count: int) -> str:
    return count_text(count) if count else ""


_SCORES: dict[str, tuple[str, Callable[..., str]]] = {
    "loss": ("loss", score_text),
    "perplexity": ("perplexity", score_text),
    "token_accuracy": ("token accuracy", share_text),
    "accuracy": ("accuracy", share_text),
    "macro_f1": ("macro-F1", share_text),
    "entity_f1": ("entity F1", share_text),
    "words_without_tag": ("words without a tag", _count_or_nothing),
    "generated": ("generated answers", _count_or_nothing),
    "exact_match": ("exact match", share_text),
    "rouge_1": ("ROUGE-1", share_text),
    "rouge_2": ("ROUGE-2", share_text),
    "rouge_l": ("ROUGE-L", share_text),
    "chrf": ("chrF", score_text),
    "bleu": ("BLEU", score_text),
}


def score_rows(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of every score that an evaluation has; the task determines which ones.

    Args:
        scores: fields of an evaluation, or its JSON, where a loss that is NaN or infinite has become None.
    """
    rows = [(name, text(scores[key])) for key, (name, text) in _SCORES.items() if scores.get(key) is not None]
    rows = [(name, text) for name, text in rows if text]
    return [("loss", _NAN), *rows] if "loss" in scores and scores["loss"] is None else rows
