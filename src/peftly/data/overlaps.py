"""Hashes of prompts and answers, and the search for examples that repeat or contradict others, in one split or two."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from peftly.data.types import Example

if TYPE_CHECKING:
    import numpy as np

    from peftly.data.findings import FindingCounter

__all__ = ["answer_key", "find_overlaps", "find_repeats", "prompt_key"]

_ODD = 0x9E3779B97F4A7C15
"""Odd factor that spreads an answer's number over 64 bits."""

_MANY = 0.4
"""Share of copies in a split from which they are hardly intended."""


def prompt_key(example: Example) -> int:
    """Return a number of 64 bits that is equal for two examples with the same prompt, or text if there is no prompt.

    Texts that differ in blanks, or in the bytes of an accented letter, are the same.
    """
    if example.messages:
        return _messages_key(example.messages[: _start_of_last_turn(example)] or example.messages)
    return _text_key("\n".join(filter(None, [example.prompt, example.pair])) or example.completion)


def answer_key(example: Example) -> int:
    """Return a number of 64 bits that is equal for two examples with the same answer; 0 for a text without a prompt.

    The answer of a conversation is all that the assistant says in it.
    """
    if example.messages:
        return _messages_key([message for message in example.messages if message["role"] == "assistant"])
    if example.tags:
        return _key("\n".join(example.tags))
    return _key(example.completion) if example.prompt or example.pair else 0


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _text_key(text: str) -> int:
    return _key(_bare(text))


def _bare(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _messages_key(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the key of messages by what is said; other keys, such as an id or a time, differ from copy to copy."""
    said = [
        [
            message["role"],
            _bare(str(message["content"] or "")),
            message.get("reasoning_content"),
            [call["function"] for call in message.get("tool_calls", ())],
        ]
        for message in messages
    ]
    return _key(json.dumps(said, sort_keys=True, default=str))


def _start_of_last_turn(example: Example) -> int:
    """Return the index of the first of the assistant's last messages; the number of messages without such a message."""
    is_assistant = [message["role"] == "assistant" for message in example.messages]
    last = next((index for index in reversed(range(len(is_assistant))) if is_assistant[index]), len(is_assistant))
    return next((index + 1 for index in reversed(range(last)) if not is_assistant[index]), 0) if last else 0


def find_overlaps(
    splits: Mapping[str, tuple[Sequence[int], Callable[[int], str]]], counters: Mapping[str, FindingCounter]
) -> None:
    """Count the prompts that two splits share: a model's score on a prompt that it was trained on says little.

    Args:
        splits: `prompt_key` of each example of a split, and a function that returns the location of an example.
        counters: counter of each split; examples are counted in the later one of the splits train, validation, test.
    """
    import numpy as np

    names = [name for name in ("train", "validation", "test") if name in splits]
    keys = {name: np.array(splits[name][0], dtype=np.uint64) for name in names}
    for number, name in enumerate(names):
        for other in names[:number]:
            shared = np.flatnonzero(np.isin(keys[name], keys[other]))
            rows = shared[: counters[name].max_samples].tolist()
            samples = [(row, f"as {splits[other][1](int(np.argmax(keys[other] == keys[name][row])))}") for row in rows]
            counters[name].add_all(f"in_{other}", len(shared), samples)


def find_repeats(
    prompts: Sequence[int],
    answers: Sequence[int],
    counter: FindingCounter,
    location: Callable[[int], str],
    labels: Sequence[str] = (),
    *,
    has_tags: bool = False,
) -> None:
    """Count copies of examples, and examples with the same prompt and different answers, in one split.

    Args:
        prompts: `prompt_key` of each example.
        answers: number of each example's label, or `answer_key`.
        counter: counter of the split.
        location: function that returns the location of an example.
        labels: label of each number, for answers that are labels.
        has_tags: whether the answers are tags.
    """
    import numpy as np

    keys = np.array(prompts, dtype=np.uint64)
    pairs = keys ^ (np.array(answers, dtype=np.uint64) * np.uint64(_ODD))
    _, first, number, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
    if (counts > 1).any():
        copies = np.flatnonzero(first[number] != np.arange(len(pairs)))
        rows = _one_of_each(copies, number, counter.max_samples)
        kind = "many_duplicates" if len(copies) >= _MANY * len(pairs) and len(pairs) >= 10 else "duplicate"
        counter.add_all(kind, len(copies), [(row, f"as {location(int(first[number[row]]))}") for row in rows])
    _, group, sizes = np.unique(keys[first], return_inverse=True, return_counts=True)
    is_ambiguous = sizes[group] > 1
    if not is_ambiguous.any():
        return
    ambiguous = np.flatnonzero(is_ambiguous[number])
    samples = []
    for row in _one_of_each(ambiguous, group[number], counter.max_samples):
        other = int(first[(group == group[number[row]]) & (np.arange(len(first)) != number[row])].min())
        detail = f"{labels[answers[row]]!r}, and {labels[answers[other]]!r} in " if labels else "another answer in "
        samples.append((row, detail + location(other)))
    counter.add_all("contradiction" if labels or has_tags else "other_answer", len(ambiguous), samples)


def _one_of_each(rows: np.ndarray, group: np.ndarray, count: int) -> list[int]:
    """Return the first row of each group, for the first groups."""
    import numpy as np

    _, first = np.unique(group[rows], return_index=True)
    return rows[np.sort(first)[:count]].tolist()  # type: ignore[no-any-return]
