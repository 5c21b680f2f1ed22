"""Search for prompts that two splits share: a model's score on a prompt that it was trained on says little."""

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from peftly.data.report import Overlap
from peftly.data.types import Example

__all__ = ["find_overlaps", "prompt_key"]


def prompt_key(example: Example) -> int:
    """Return a number of 64 bits that is equal for two examples with the same prompt, or text if there is no prompt."""
    return int.from_bytes(blake2b(_prompt(example).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _prompt(example: Example) -> str:
    if not example.messages:
        prompt = "\n".join(filter(None, [example.prompt, example.pair]))
        return prompt or example.completion
    messages = list(example.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return json.dumps(messages or list(example.messages), sort_keys=True, default=str)


def find_overlaps(splits: Mapping[str, tuple[Sequence[int], Callable[[int], str]]]) -> list[Overlap]:
    """Return every pair of splits that share prompts.

    Args:
        splits: `prompt_key` of each example of a split, and a function that returns the location of an example.
    """
    import numpy as np

    overlaps = []
    names = [name for name in ("train", "validation", "test") if name in splits]
    keys = {name: np.array(splits[name][0], dtype=np.uint64) for name in names}
    for number, name in enumerate(names):
        for other in names[:number]:
            shared = np.flatnonzero(np.isin(keys[name], keys[other]))
            if len(shared):
                first = int(shared[0])
                first_in_other = int(np.argmax(keys[other] == keys[name][first]))
                locations = splits[name][1](first), splits[other][1](first_in_other)
                overlaps.append(Overlap(name, other, len(shared), *locations))
    return overlaps
