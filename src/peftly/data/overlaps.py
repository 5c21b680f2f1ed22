"""Search for prompts that two splits share: a model's score on a prompt that it was trained on says little."""

import json
from collections.abc import Mapping, Sequence

from peftly.data.report import Overlap
from peftly.data.types import Example

__all__ = ["find_overlaps", "prompt_key"]


def prompt_key(example: Example) -> str:
    """Return a string that is equal for two examples with the same prompt; the text itself if there is no prompt."""
    if not example.messages:
        prompt = "\n".join(filter(None, [example.prompt, example.pair]))
        return prompt or example.completion
    messages = list(example.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return json.dumps(messages or list(example.messages), sort_keys=True, default=str)


def find_overlaps(splits: Mapping[str, tuple[Sequence[Example], Sequence[str]]]) -> list[Overlap]:
    """Return every pair of splits that share prompts.

    Args:
        splits: examples of each split, and the location of each example.
    """
    overlaps = []
    names = [name for name in ("train", "validation", "test") if name in splits]
    keys = {name: [prompt_key(example) for example in splits[name][0]] for name in names}
    for number, name in enumerate(names):
        for other in names[:number]:
            first_of_key: dict[str, int] = {}
            for index, key in enumerate(keys[other]):
                first_of_key.setdefault(key, index)
            shared = [index for index, key in enumerate(keys[name]) if key in first_of_key]
            if shared:
                location = splits[name][1][shared[0]]
                other_location = splits[other][1][first_of_key[keys[name][shared[0]]]]
                overlaps.append(Overlap(name, other, len(shared), location, other_location))
    return overlaps
