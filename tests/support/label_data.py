"""Small labelled data, given as token ids."""

from importlib import import_module

from tiny import WINDOW, random_token_ids

from peftly.data import EncodedExample, Example, RowFormat, Split

EVALUATE = import_module("peftly.evaluation.label_scores")
"""Module `label_scores`, for tests that replace one of its names."""

PROMPTS = random_token_ids([3, 2 * WINDOW + 1, 7, 4, 3])
LABELS = {"no": [5, 2], "yes, of course": [5, 9, 11, 2], "one token": [2], "maybe": [7, 2], "so": [5, 9, 2]}
"""Token ids of each label, end token included."""


class IdTokenizer:
    """The part of a tokenizer that `evaluate` uses."""

    pad_token_id = 0
    eos_token_id = 2


def label_split() -> tuple[Split, RowFormat]:
    """Every prompt with the first or second label in turn, and the row format of all labels."""
    names = list(LABELS)
    golds = [names[index % 2] for index in range(len(PROMPTS))]
    encoded = [
        EncodedExample(prompt + LABELS[gold], [False] * len(prompt) + [True] * len(LABELS[gold]))
        for prompt, gold in zip(PROMPTS, golds, strict=True)
    ]
    examples = [Example(prompt=f"row {n}", completion=f" {gold}", label=gold) for n, gold in enumerate(golds)]
    return Split(examples, encoded), RowFormat("label", "{text} is", "label", tuple(names))
