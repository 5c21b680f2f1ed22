"""Findings: defects of the examples of a split, counted by kind, with the first examples of each kind."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FINDING_KINDS", "Finding", "FindingCounter", "FindingKind"]

_MAX_SAMPLES = 3


@dataclass(frozen=True)
class FindingKind:
    """Kind of a defect.

    Attributes:
        text: sentence about the examples of this kind, without a subject: the count and the noun come first.
        is_problem: whether the data should be mended before a training; `inspect --strict` fails then.
    """

    text: str
    is_problem: bool


FINDING_KINDS: dict[str, FindingKind] = {
    "unknown_characters": FindingKind("with characters that the tokenizer does not know", is_problem=True),
    "unknown_target": FindingKind(
        "with an answer that has characters which the tokenizer does not know, so that unknown tokens are learned",
        is_problem=True,
    ),
    "changed_target": FindingKind("with an answer of which the tokenizer loses or changes characters", is_problem=True),
    "repeated_start": FindingKind(
        "whose text begins with the start token that every text gets; the second one is left out", is_problem=False
    ),
    "repeated_end": FindingKind(
        "whose text ends with the end token that every text gets; the second one is left out", is_problem=False
    ),
    "words_without_token": FindingKind("with words that have no token, whose tags are not learned", is_problem=True),
    "no_label": FindingKind("row dropped: its label is empty", is_problem=True),
    "empty_text": FindingKind("row dropped: its text is empty", is_problem=True),
    "empty_answer": FindingKind("row dropped: its answer is empty", is_problem=True),
    "bad_completion": FindingKind("row dropped: its completion is marked as bad", is_problem=False),
    "empty_turns": FindingKind("with an empty turn of the assistant, which is not trained", is_problem=True),
    "hidden_turns": FindingKind(
        "with a turn of the assistant of which the chat template shows nothing; it is not trained", is_problem=True
    ),
    "hidden_calls": FindingKind(
        "with tool calls that the chat template does not show; these turns are not trained", is_problem=True
    ),
    "hidden_parts": FindingKind(
        "with a turn of which the chat template leaves out a part; the rest is trained", is_problem=True
    ),
    "hidden_messages": FindingKind("with a message that the chat template does not show", is_problem=True),
    "hidden_tools": FindingKind("with tools that the chat template does not show", is_problem=True),
    "text_arguments": FindingKind("with arguments of a tool call that are no JSON object", is_problem=True),
    "special_tokens_in_text": FindingKind("with special tokens inside a text or a message", is_problem=True),
    "special_tokens_removed": FindingKind(
        "with start or end tokens around the text of a message, which are removed", is_problem=False
    ),
    "joined_messages": FindingKind(
        "with consecutive messages of one role, joined since the chat template refuses them", is_problem=False
    ),
    "marked_other_roles": FindingKind(
        "with a message marked to be trained that is not the assistant's; it is not trained", is_problem=False
    ),
    "opening_turns": FindingKind(
        "with a turn of the assistant that opens the conversation; it is not trained", is_problem=False
    ),
    "several_sequences": FindingKind(
        "whose earlier turns the chat template renders in another way later; these are sequences of their own",
        is_problem=False,
    ),
    "unended_turns": FindingKind(
        "with turns that the chat template does not end; the end token of the tokenizer follows", is_problem=False
    ),
    "messages_after_last_turn": FindingKind(
        "that go on after the assistant's last trained turn; the rest is left out", is_problem=False
    ),
}
"""Every kind of finding, by its name in JSON files. A check that finds a new kind of defect adds an entry here."""


@dataclass(frozen=True)
class Finding:
    """Examples of a split with the same kind of defect.

    Attributes:
        kind: key of `FINDING_KINDS`.
        count: number of examples.
        samples: location and detail of the first examples, such as "rows.jsonl: line 3: 😀".
    """

    kind: str
    count: int
    samples: tuple[str, ...]

    @property
    def is_problem(self) -> bool:
        """Whether the data should be mended before a training."""
        return FINDING_KINDS[self.kind].is_problem

    def line(self) -> str:
        """Return the finding in one line."""
        return f"{self.count:,} × {FINDING_KINDS[self.kind].text} (first: {self.samples[0]})"


class FindingCounter:
    """Counts the findings of the examples of a split."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, list[str]] = {}

    def add(self, kind: str, location: Callable[[], str], detail: str = "") -> None:
        """Count an example.

        Args:
            kind: key of `FINDING_KINDS`.
            location: function that returns the location of the example; it is called for the first examples only.
            detail: part of the example that has the defect; empty if the location says enough.
        """
        self._counts[kind] += 1
        samples = self._samples.setdefault(kind, [])
        if len(samples) < _MAX_SAMPLES:
            samples.append(": ".join(filter(None, [location(), detail])))

    def findings(self) -> list[Finding]:
        """Return the findings in the order of `FINDING_KINDS`."""
        return [
            Finding(kind, self._counts[kind], tuple(self._samples[kind]))
            for kind in FINDING_KINDS
            if self._counts[kind]
        ]
