"""Second data set of the benchmarks: longer texts than the sample tweets, with four labels and another vocabulary.

A text is the start of the documentation string of a SciPy function; its label is the part of SciPy with this function.
The texts are read from the installed package (`constraints.txt` pins its version); this repository has no copy of them.
"""

import importlib
import inspect
import json
import random
import re
from pathlib import Path

__all__ = ["ROWS", "write_rows"]

PARTS = {
    "statistics": "scipy.stats",
    "signal processing": "scipy.signal",
    "linear algebra": "scipy.linalg",
    "special functions": "scipy.special",
}
ROWS = {"train": 120, "validation": 60, "test": 120}
SHORTEST, LONGEST = 10, 60
"""Minimum and maximum number of words of a text. Shorter texts are left out, longer texts are truncated."""
SKIPPED_PARAGRAPH = r"\w+\(.*\)$|\s*\.\. |.*\barray argument|.*\bArray argument"
"""Pattern of the paragraphs to leave out: calls, directives, and paragraphs that a decorator adds to many functions."""


def write_rows(folder: Path) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, each with the same number of rows for every label."""
    draw = random.Random(0)
    texts = {label: _texts(importlib.import_module(module)) for label, module in PARTS.items()}
    for texts_of_label in texts.values():
        draw.shuffle(texts_of_label)
    start = 0
    for split, count in ROWS.items():
        per_label = count // len(PARTS)
        rows = [
            {"text": text, "label": label}
            for label, texts_of_label in texts.items()
            for text in texts_of_label[start : start + per_label]
        ]
        draw.shuffle(rows)
        start += per_label
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def _texts(module: object) -> list[str]:
    """Return the texts of a module's public functions: their descriptions before the list of parameters."""
    texts = {}
    for name in sorted(module.__all__):  # type: ignore[attr-defined]
        docstring = inspect.getdoc(getattr(module, name)) or ""
        head = re.split(r"\n\w[\w ]*\n-{3,}\n", docstring)[0]
        paragraphs = re.split(r"\n\s*\n", head)
        described = [part for part in paragraphs if not re.match(SKIPPED_PARAGRAPH, part, re.DOTALL)]
        words = " ".join(described).split()
        text = " ".join(words[:LONGEST])
        if len(words) >= SHORTEST and "scipy" not in text.lower():
            texts[text] = None  # a dictionary keeps the order and drops duplicates
    return list(texts)
