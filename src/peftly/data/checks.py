"""Checks of encoded examples, of the labels of a split, and of the rows that training leaves out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from peftly.data.types import EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data.findings import FindingCounter

__all__ = ["EncodingChecks", "check_answers", "check_labels", "count_outliers", "drop_reason"]

_FEW = 10
"""Number of examples below which a split is too small to judge its labels and answers as a whole."""

_MOST = 0.95
"""Share of the examples with one label from which the labels are unbalanced."""

_LONG = 20
"""Length of an outlier, in median lengths."""


class EncodingChecks:
    """Checks of the token ids that a model is trained on."""

    def __init__(
        self, task: TaskName, tokenizer: PreTrainedTokenizerBase, max_length: int, *, is_chat: bool, is_text: bool
    ) -> None:
        """Find the special tokens of the tokenizer.

        Args:
            task: task of the model.
            tokenizer: tokenizer of the base.
            max_length: maximum number of tokens of an example.
            is_chat: whether the examples are conversations.
            is_text: whether the examples are plain texts, which may go on after their last token.
        """
        vocabulary = Vocabulary.of(tokenizer)
        self._special = vocabulary.special - {tokenizer.unk_token_id}
        self._ends = self._special | set(tokenizer.added_tokens_decoder)
        self._tokenizer, self._max_length = tokenizer, max_length
        self._is_causal, self._is_chat, self._is_text = task == "causal_lm", is_chat, is_text
        self._has_tags = task == "token_classification"

    def __call__(self, encoded: EncodedExample) -> Iterator[tuple[str, str]]:
        """Yield kind and detail of each defect of an example."""
        answer = encoded.answer
        ids = encoded.input_ids if answer is None else answer
        for first, second in ((0, 1), (-1, -2)):
            if len(ids) > 2 and ids[first] == ids[second] and ids[first] in self._special:
                yield "doubled_special_token", str(self._tokenizer.convert_ids_to_tokens(ids[first]))
        removed = f"{encoded.num_truncated} removed" if encoded.num_truncated else ""
        if self._is_text or not (self._is_causal or answer is not None):
            if removed:
                yield "cut_text" if self._is_text else "cut_tags" if self._has_tags else "cut_prompt", removed
            return
        has_end = self._ends_all_turns(encoded) if self._is_chat else ids[-1] in self._ends
        if has_end and removed:
            yield "cut_prompt", removed
        elif removed and ids[-1] not in self._ends and (answer is not None or encoded.trained[-1]):
            yield "cut_answer", removed
        elif not has_end:
            yield "no_end_token", ""

    def _ends_all_turns(self, encoded: EncodedExample) -> bool:
        following = [*encoded.trained[1:], False]
        return all(
            token in self._ends
            for token, is_trained, goes_on in zip(encoded.input_ids, encoded.trained, following, strict=True)
            if is_trained and not goes_on
        )


def drop_reason(example: Example, task: TaskName) -> str:
    """Return the kind of finding that says why an example has no target."""
    if example.messages:
        turns = [
            message
            for number, message in enumerate(example.messages)
            if message["role"] == "assistant"
            and any(other["role"] != "assistant" for other in example.messages[:number])
        ]
        if not turns:
            return "no_assistant_turn"
        if not any(_has_content(turn) for turn in turns):
            return "empty_answer"
        return "no_room"
    if task in ("sequence_classification", "token_classification"):
        return "empty_text" if not example.prompt.strip() else "no_room"
    if not example.completion.strip():
        return "empty_answer" if example.prompt else "empty_text"
    return "no_room"


def _has_content(turn: dict[str, object]) -> bool:
    content = turn.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(turn.get("tool_calls"))


def check_answers(
    prompts: Sequence[int], answers: Sequence[int], counter: FindingCounter, *, has_prompts: bool
) -> None:
    """Look for a split whose examples all have the same answer, or all the same prompt.

    Args:
        prompts: `prompt_key` of each example.
        answers: number of each example's label, or `answer_key`.
        counter: counter of the split.
        has_prompts: whether the examples have prompts; otherwise nothing is looked for.
    """
    if not has_prompts or len(prompts) < _FEW:
        return
    if all(answer == answers[0] for answer in answers):
        counter.add_all("same_answer", len(answers), [(0, "")])
    if all(prompt == prompts[0] for prompt in prompts):
        counter.add_all("same_prompt", len(prompts), [(0, "")])


def count_outliers(lengths: Sequence[int], rows: Sequence[int], max_length: int, counter: FindingCounter) -> None:
    """Count the examples that are truncated and far longer than the others.

    Args:
        lengths: number of tokens of each example before truncation.
        rows: index of the row of each example.
        max_length: maximum number of tokens of an example.
        counter: counter of the split.
    """
    import numpy as np

    values = np.array(lengths)
    long = np.flatnonzero(values > max(max_length, _LONG * float(np.median(values))))
    if len(values) >= _FEW:
        samples = [(rows[index], f"{values[index]:,} tokens") for index in long[: counter.max_samples].tolist()]
        counter.add_all("long_outlier", len(long), samples)


def check_labels(labels: Sequence[str], numbers: Sequence[int], target: str, counter: FindingCounter) -> None:
    """Look for suspicious labels or tags in the training split.

    Args:
        labels: all labels or tags.
        numbers: number of each example's label in `labels`; -1 for each example with tags.
        target: name of the field with the labels.
        counter: counter of the split.
    """
    import numpy as np

    number_of_example = np.array(numbers, dtype=np.int64)
    of_label = number_of_example[number_of_example >= 0]
    counts = np.bincount(of_label, minlength=len(labels)).tolist()

    def row(label: str) -> int:
        found = np.flatnonzero(number_of_example == labels.index(label))
        return int(found[0]) if len(found) else -1

    count_of = dict(zip(labels, counts, strict=True))
    same: dict[str, list[str]] = {}
    for label in sorted(labels, key=count_of.__getitem__, reverse=True):
        same.setdefault("".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    similar = [(label, f"{label!r} beside {group[0]!r}") for group in same.values() for label in group[1:]]
    counter.add_all("similar_labels", len(similar), [(row(label), detail) for label, detail in similar])
    if not len(of_label):
        return
    headers = [label for label in labels if label.casefold() == target.casefold()]
    counter.add_all(
        "header_label", sum(map(count_of.__getitem__, headers)), [(row(label), repr(label)) for label in headers]
    )
    most = max(counts)
    common = labels[counts.index(most)]
    if len(labels) > _FEW and len(of_label) < 2 * len(labels):
        counter.add_all("many_labels", len(labels), [(row(label), repr(label)) for label in labels[:3]])
        return
    if most > _MOST * len(of_label) and len(labels) > 1 and len(of_label) > 4 * _FEW:
        counter.add_all("unbalanced_labels", most, [(row(common), repr(common))])
    rare = [label for label in labels if count_of[label] == 1] if len(of_label) > 4 * len(labels) else []
    counter.add_all("rare_label", len(rare), [(row(label), repr(label)) for label in rare[:3]])
