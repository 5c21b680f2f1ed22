"""Rows that stand in two splits: what a model has seen in training says nothing when it is asked again."""

import json
from collections.abc import Mapping, Sequence

from peftly.data.report import Overlap
from peftly.data.types import Example

__all__ = ["key_of", "overlaps"]


def key_of(example: Example) -> str:
    """Return what makes two rows the same to a model: all that comes before the answer, or else the text."""
    if not example.messages:
        both = "\n".join(filter(None, [example.prompt, example.pair]))
        return both or example.completion
    messages = list(example.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return json.dumps(messages or list(example.messages), sort_keys=True, default=str)


def overlaps(parts: Mapping[str, tuple[Sequence[Example], Sequence[str]]]) -> list[Overlap]:
    """Return which splits share rows.

    Args:
        parts: the examples of every split, and where each comes from.
    """
    found = []
    names = [name for name in ("train", "validation", "test") if name in parts]
    for position, name in enumerate(names):
        keys = [key_of(example) for example in parts[name][0]]
        for other in names[:position]:
            firsts: dict[str, int] = {}
            for index, example in enumerate(parts[other][0]):
                firsts.setdefault(key_of(example), index)
            both = [index for index, key in enumerate(keys) if key in firsts]
            if both:
                place, other_place = parts[name][1][both[0]], parts[other][1][firsts[keys[both[0]]]]
                found.append(Overlap(name, other, len(both), place, other_place))
    return found
