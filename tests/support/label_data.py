"""Small labelled data."""

from importlib import import_module

from tiny import WINDOW, random_rows

from peftly.data import EncodedExample, Example, RowFormat, Split

# Imported by name, for the package's attribute of that name is the function.
EVALUATE = import_module("peftly.evaluation.label_scores")


PROMPTS = random_rows([3, 2 * WINDOW + 1, 7, 4, 3])


LABELS = {"no": [5, 2], "yes, of course": [5, 9, 11, 2], "one token": [2], "maybe": [7, 2], "so": [5, 9, 2]}


class IdTokenizer:
    """What `evaluate` asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 2


def label_split() -> tuple[Split, RowFormat]:
    names = list(LABELS)
    golds = [names[index % 2] for index in range(len(PROMPTS))]
    encoded = [
        EncodedExample(prompt + LABELS[gold], [False] * len(prompt) + [True] * len(LABELS[gold]), 0)
        for prompt, gold in zip(PROMPTS, golds, strict=True)
    ]
    examples = [Example(prompt=f"row {n}", completion=f" {gold}", label=gold) for n, gold in enumerate(golds)]
    return Split(examples, encoded), RowFormat("label", "{text} is", "label", tuple(names))
