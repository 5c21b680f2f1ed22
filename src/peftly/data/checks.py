"""Checks of encoded examples, of the labels of a split, and of the rows that training leaves out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from peftly.data.messages import ROLES
from peftly.data.rows import quoted
from peftly.data.spoiled_texts import MISSING_WORDS
from peftly.data.turn_ends import TurnEnds
from peftly.data.types import UNTRAINED, EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data.findings import FindingCounter

__all__ = ["DROP_KINDS", "EncodingChecks", "check_answers", "check_labels", "count_outliers", "drop_reason"]

DROP_KINDS = ("no_room", "empty_answer", "empty_text", "no_assistant_turn", "untrained_turns")
"""Kinds of findings that `drop_reason` returns."""

_FEW = 10
"""Number of examples below which a split is too small to judge its labels and answers as a whole."""

_MOST = 0.95
"""Share of the examples with one label from which the labels are unbalanced."""

_LONG = 20
"""Length of an outlier, in median lengths."""


class EncodingChecks:
    """Checks of the token ids that a model is trained on."""

    def __init__(self, task: TaskName, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
        """Find the special tokens of the tokenizer.

        Args:
            task: task of the model.
            tokenizer: tokenizer of the base.
            kind: kind of the row format.
        """
        vocabulary = Vocabulary.of(tokenizer)
        self._special = vocabulary.special - {tokenizer.unk_token_id}
        self._ends = self._special | set(tokenizer.added_tokens_decoder)
        self._tokenizer = tokenizer
        self._end_text = TurnEnds(tokenizer).text if kind == "chat" and tokenizer.chat_template else ""
        self._has_answers = task in ("causal_lm", "seq2seq_lm") and kind != "text"
        self._cut_kind = {"text": "cut_text", "tags": "cut_tags", "chat": "cut_turns"}.get(kind, "cut_prompt")
        self._kind = kind

    def __call__(self, encoded: EncodedExample) -> list[tuple[str, str]]:
        """Return kind and detail of each defect of an example."""
        found = []
        ids = encoded.input_ids if encoded.answer is None else encoded.answer
        if len(ids) > 2:
            if ids[0] == ids[1] and ids[0] in self._special:
                found.append(("doubled_special_token", str(self._tokenizer.convert_ids_to_tokens(ids[0]))))
            elif ids[-1] == ids[-2] and ids[-1] in self._special:
                found.append(("doubled_special_token", str(self._tokenizer.convert_ids_to_tokens(ids[-1]))))
        has_end = True
        if self._has_answers:
            has_end = ids[-1] in self._ends if self._kind != "chat" else not self._turns_without_end(encoded)
        if encoded.num_truncated:
            is_cut = not has_end and ids[-1] not in self._ends and encoded.targets[-1] != UNTRAINED
            found.append(("cut_answer" if is_cut else self._cut_kind, f"{encoded.num_truncated} removed"))
            has_end = has_end or is_cut
        if not has_end:
            found.append(("no_end_token", ""))
        return found

    def _turns_without_end(self, encoded: EncodedExample) -> int:
        return sum(not self._has_end(turn) for turn in _turns(encoded))

    def _has_end(self, turn: list[int]) -> bool:
        """Return whether a turn ends with a special token, or with the text that the chat template ends turns with."""
        if turn[-1] in self._ends or not self._end_text:
            return turn[-1] in self._ends
        return str(self._tokenizer.decode(turn)).rstrip().endswith(self._end_text)


def _turns(encoded: EncodedExample) -> Iterator[list[int]]:
    """Yield the token ids of each sequence of trained tokens."""
    ids, trained, end = encoded.input_ids, encoded.trained, 0
    with suppress(ValueError):  # no token is trained from `end` on
        while True:
            start = trained.index(True, end)
            try:
                end = trained.index(False, start)
            except ValueError:
                end = len(ids)
            yield ids[start:end]


def drop_reason(example: Example, task: TaskName) -> tuple[str, str]:
    """Return kind and detail of the finding that says why an example has no target."""
    if example.messages:
        return _drop_reason_of_conversation(example)
    if task in ("sequence_classification", "token_classification"):
        return "empty_text" if not example.prompt.strip() else "no_room", ""
    if not example.completion.strip():
        return "empty_answer" if example.prompt else "empty_text", ""
    return "no_room", ""


def _drop_reason_of_conversation(example: Example) -> tuple[str, str]:
    roles = [message["role"] for message in example.messages]
    turns = [n for n, role in enumerate(roles) if role == "assistant" and set(roles[:n]) - {"assistant"}]
    if not turns:
        unknown = dict.fromkeys(role for role in roles if role not in ROLES)
        return "no_assistant_turn", f"unknown roles {quoted(unknown)}" if unknown else ""
    if not any(_has_content(example.messages[turn]) for turn in turns):
        return "empty_answer", ""
    return "untrained_turns" if set(turns) <= set(example.untrained) else "no_room", ""


def _has_content(turn: dict[str, object]) -> bool:
    content = turn.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(turn.get("tool_calls"))


def check_answers(prompts: Sequence[int], answers: Sequence[int], counter: FindingCounter) -> None:
    """Look for a split whose examples all have the same answer, or all the same prompt.

    Args:
        prompts: `prompt_key` of each example.
        answers: `answer_key` of each example; empty for examples with labels.
        counter: counter of the split.
    """
    if len(prompts) < _FEW:
        return
    if answers and all(answer == answers[0] for answer in answers):
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
        same.setdefault(_spelling(label), []).append(label)
    similar = [(label, f"{label!r} beside {group[0]!r}") for group in same.values() for label in group[1:]]
    counter.add_all("similar_labels", len(similar), [(row(label), detail) for label, detail in similar])
    if not len(of_label):
        return
    headers = [label for label in labels if label.casefold() == target.casefold()]
    counter.add_all(
        "header_label", sum(map(count_of.__getitem__, headers)), [(row(label), repr(label)) for label in headers]
    )
    missing = [label for label in labels if _means_missing(label, labels)]
    counter.add_all(
        "missing_label", sum(map(count_of.__getitem__, missing)), [(row(one), repr(one)) for one in missing]
    )
    numbered = [label for label in labels if label.isdecimal()]
    named = [label for label in labels if label not in (*numbered, *missing, "-1")]
    if min(len(numbered), len(named)) > 1:
        counter.add_all(
            "mixed_labels", sum(map(count_of.__getitem__, numbered)), [(row(one), repr(one)) for one in numbered]
        )
    most = max(counts)
    if most == len(of_label) >= _FEW:
        counter.add_all("one_label", most, [(0, repr(labels[counts.index(most)]))])
    common = labels[counts.index(most)]
    if len(labels) > _FEW and len(of_label) < 2 * len(labels):
        counter.add_all("many_labels", len(labels), [(row(label), repr(label)) for label in labels[:3]])
        return
    if most > _MOST * len(of_label) and len(labels) > 1 and len(of_label) > 4 * _FEW:
        counter.add_all("unbalanced_labels", most, [(row(common), repr(common))])
    rare = (
        [label for label in labels if count_of[label] == 1 and label not in headers]
        if len(of_label) > 4 * len(labels)
        else []
    )
    counter.add_all("rare_label", len(rare), [(row(label), repr(label)) for label in rare[:3]])


def _spelling(label: str) -> str:
    """Return a label without what looks alike: cases, blanks, characters without a width, and the zeros of 1.0."""
    text = unicodedata.normalize("NFKC", label).casefold()
    if text.partition(".")[0].isdecimal():
        text = re.sub(r"\.0+$", "", text)
    return "".join(
        character for character in text if not character.isspace() and unicodedata.category(character) != "Cf"
    )


def _means_missing(label: str, labels: Sequence[str]) -> bool:
    """Return whether programs write a label for a missing one: "nan" of pandas, or -1 beside 0, 1 and 2."""
    if label == "-1":
        others = [other for other in labels if other != label]
        return len(others) > 2 and all(other.isdecimal() for other in others)
    words = ("nan", "n/a", "na", "unlabeled", "unlabelled")
    return label in MISSING_WORDS or label in ("None", "NULL", "null") or label.casefold() in words
