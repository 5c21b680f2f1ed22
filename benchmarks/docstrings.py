"""A data set that is not the sample tweets: longer texts, four labels, other words. Made from what is installed.

The summaries and first explanations of SciPy's functions, as its own documentation strings have them, and which part of
SciPy each is from. Nothing of them is in this repository: they are read out of the installed package, whose version
`constraints.txt` pins, and written where the benchmark asks for them.
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
"""Words that a text has at least; words that it is cut to."""
NO_TEXT = r"\w+\(.*\)$|\s*\.\. |.*\barray argument|.*\bArray argument"
"""Paragraphs that are left out: a call, a directive, and what the decorator of one part adds to all its functions."""


def write_rows(folder: Path) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, each with as many rows of every label."""
    draw = random.Random(0)
    texts = {label: _texts(importlib.import_module(module)) for label, module in PARTS.items()}
    for of_label in texts.values():
        draw.shuffle(of_label)
    start = 0
    for split, count in ROWS.items():
        each = count // len(PARTS)
        rows = [
            {"text": text, "label": label}
            for label, of_label in texts.items()
            for text in of_label[start : start + each]
        ]
        draw.shuffle(rows)
        start += each
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def _texts(module: object) -> list[str]:
    """Return what the public functions of a module say of themselves, before their list of parameters."""
    found = {}
    for name in sorted(module.__all__):  # type: ignore[attr-defined]
        said = inspect.getdoc(getattr(module, name)) or ""
        head = re.split(r"\n\w[\w ]*\n-{3,}\n", said)[0]
        paragraphs = [part for part in re.split(r"\n\s*\n", head) if not re.match(NO_TEXT, part, re.DOTALL)]
        words = " ".join(paragraphs).split()
        if len(words) >= SHORTEST and "scipy" not in " ".join(words[:LONGEST]).lower():
            found[" ".join(words[:LONGEST])] = None
    return list(found)
