"""The sample data in the package: balanced labels, and no row that another split has in nearly the same words."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

SPLITS = ("train", "validation", "test")
SIZES = {
    "complaints": ((200, 100, 300), ("complaint", "no complaint")),
    "messages": ((240, 80, 200), ("billing", "delivery", "jobs", "technical")),
}


def rows(name: str, split: str) -> list[dict[str, str]]:
    text = (files("peftly") / "sample_data" / name / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def similarity(a: str, b: str) -> float:
    """Return the share of the words of both texts that both texts have."""
    return len(words(a) & words(b)) / len(words(a) | words(b))


@pytest.mark.parametrize("name", SIZES)
def test_each_label_has_the_same_number_of_rows(name):
    sizes, labels = SIZES[name]
    for split, size in zip(SPLITS, sizes, strict=True):
        counts = Counter(row["label"] for row in rows(name, split))
        assert counts == dict.fromkeys(labels, size // len(labels)), split


@pytest.mark.parametrize("name", SIZES)
def test_no_row_is_in_another_split_in_nearly_the_same_words(name):
    texts = {split: [row["text"] for row in rows(name, split)] for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        near = [(a, b) for a in texts[first] for b in texts[second] if similarity(a, b) > 0.5]
        assert near == [], (first, second)


def test_the_messages_are_not_made_from_templates():
    """Of the first three words of a row few are those of another row, and no two rows have a longer text in common."""
    texts = [row["text"].lower() for split in SPLITS for row in rows("messages", split)]
    starts = Counter(" ".join(re.findall(r"\w+", text)[:3]) for text in texts)
    assert max(starts.values()) <= 8, starts.most_common(3)
    runs: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = re.findall(r"\w+", text)
        runs.update({tuple(found[i : i + 6]) for i in range(len(found) - 5)})
    assert [run for run, count in runs.items() if count > 1] == []
