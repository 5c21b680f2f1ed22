"""Findings: defects of the examples of a split, counted by kind, with the first examples of each kind."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["FINDING_KINDS", "Finding", "FindingCounter", "FindingKind"]


@dataclass(frozen=True)
class FindingKind:
    """Kind of a defect.

    Attributes:
        text: phrase that follows the count, as in "3 × example with an answer that is cut at its end".
        is_problem: whether the data should be mended before a training; `inspect --strict` fails then.
    """

    text: str
    is_problem: bool


FINDING_KINDS: dict[str, FindingKind] = {
    "mostly_unknown": FindingKind(
        "example with a text of which the tokenizer knows less than half; take a base for its language", is_problem=True
    ),
    "unknown_characters": FindingKind("example with characters that the tokenizer does not know", is_problem=False),
    "doubled_special_token": FindingKind("example that begins or ends with one special token twice", is_problem=True),
    "no_end_token": FindingKind("example with an answer that has no end token, so it never stops", is_problem=True),
    "cut_answer": FindingKind("example with an answer that is cut at its end to fit max_length", is_problem=True),
    "no_room": FindingKind("row dropped: max_length leaves no room for its answer", is_problem=True),
    "unknown_target": FindingKind(
        "example with an answer of characters that the tokenizer does not know; unknown tokens are learned",
        is_problem=True,
    ),
    "changed_target": FindingKind(
        "example with an answer of which the tokenizer loses or changes characters", is_problem=True
    ),
    "repeated_start": FindingKind(
        "example whose text begins with the start token that every text gets; the second one is left out",
        is_problem=False,
    ),
    "repeated_end": FindingKind(
        "example whose text ends with the end token that every text gets; the second one is left out", is_problem=False
    ),
    "words_without_token": FindingKind(
        "example with words that have no token, whose tags are not learned", is_problem=True
    ),
    "text_without_tokens": FindingKind(
        "example with a text of which the tokenizer makes no token, such as characters without a width", is_problem=True
    ),
    "no_label": FindingKind("row dropped: its label is empty", is_problem=True),
    "empty_answer": FindingKind("row dropped: its answer is empty", is_problem=True),
    "empty_text": FindingKind("row dropped: its text is empty", is_problem=True),
    "no_assistant_turn": FindingKind("row dropped: no turn of the assistant follows a prompt", is_problem=True),
    "untrained_turns": FindingKind("row dropped: all turns of the assistant are marked as untrained", is_problem=False),
    "bad_completion": FindingKind("row dropped: its completion is marked as bad", is_problem=False),
    "empty_turns": FindingKind("example with an empty turn of the assistant, which is not trained", is_problem=True),
    "hidden_turns": FindingKind(
        "example with a turn of the assistant of which the chat template shows nothing; it is not trained",
        is_problem=True,
    ),
    "hidden_calls": FindingKind(
        "example with tool calls that the chat template does not show; these turns are not trained", is_problem=True
    ),
    "hidden_parts": FindingKind(
        "example with a turn of which the chat template leaves out a part; the rest is trained", is_problem=True
    ),
    "hidden_messages": FindingKind("example with a message that the chat template does not show", is_problem=True),
    "hidden_tools": FindingKind("example with tools that the chat template does not show", is_problem=True),
    "text_arguments": FindingKind("example with arguments of a tool call that are no JSON object", is_problem=True),
    "special_tokens_in_text": FindingKind("example with special tokens inside a text or a message", is_problem=True),
    "foreign_special_tokens": FindingKind(
        "example with a special token of other models, which is several tokens here and is learned as letters",
        is_problem=True,
    ),
    "special_tokens_removed": FindingKind(
        "example with start or end tokens around the text of a message, which are removed", is_problem=False
    ),
    "joined_messages": FindingKind(
        "example with consecutive messages of one role, joined since the chat template refuses them", is_problem=False
    ),
    "marked_other_roles": FindingKind(
        "example with a message marked to be trained that is not the assistant's; it is not trained", is_problem=False
    ),
    "unread_marks": FindingKind(
        "example with true or false in a message under a key that is no mark; marks are 'weight', 'train' and 'loss'",
        is_problem=False,
    ),
    "reordered_results": FindingKind(
        "example with results of tools in another order than their calls; they are sorted", is_problem=False
    ),
    "two_systems": FindingKind(
        "example with a system message in a field and another one in its messages; the field is not used",
        is_problem=True,
    ),
    "opening_turns": FindingKind(
        "example with a turn of the assistant that opens the conversation; it is not trained", is_problem=False
    ),
    "several_sequences": FindingKind(
        "conversation in several training sequences, since earlier turns have other tokens once messages follow them",
        is_problem=False,
    ),
    "unended_turns": FindingKind(
        "example with turns that the chat template does not end; the end token of the tokenizer follows",
        is_problem=False,
    ),
    "messages_after_last_turn": FindingKind(
        "conversation with messages that go on after the assistant's last trained turn; the rest is left out",
        is_problem=False,
    ),
    "contradiction": FindingKind("example with the text of another example and another label", is_problem=True),
    "in_train": FindingKind("example with a prompt that the train split has, too", is_problem=True),
    "one_label": FindingKind("example, all of them with the same label", is_problem=True),
    "similar_labels": FindingKind(
        "label that differs from another label in case, spaces or the spelling of a number only", is_problem=True
    ),
    "wrong_encoding": FindingKind(
        "example with characters in the wrong encoding, such as Ã© for é or � for a lost one", is_problem=True
    ),
    "missing_text": FindingKind(
        "example with a word such as nan or \\N in place of a missing text; it is read as a text", is_problem=True
    ),
    "missing_label": FindingKind(
        "example with a label that usually stands for a missing one; it is learned as a label", is_problem=False
    ),
    "mixed_labels": FindingKind(
        "example with a number as its label, where others have words; are these two spellings of the same labels?",
        is_problem=False,
    ),
    "header_label": FindingKind(
        "example with the name of the field as its label, as of a second header", is_problem=True
    ),
    "many_labels": FindingKind(
        "label in a split with fewer than two examples for each label on average", is_problem=True
    ),
    "many_duplicates": FindingKind("copy of an earlier example, 40% of the split or more", is_problem=True),
    "duplicate": FindingKind("copy of an earlier example", is_problem=False),
    "in_validation": FindingKind("example with a prompt that the validation split has, too", is_problem=False),
    "other_answer": FindingKind("example with the prompt of another example and another answer", is_problem=False),
    "same_answer": FindingKind("example, all of them with the same answer", is_problem=False),
    "same_prompt": FindingKind("example, all of them with the same prompt", is_problem=False),
    "rare_label": FindingKind("label of a single example", is_problem=False),
    "unbalanced_labels": FindingKind("example with the same label, more than 95% of the split", is_problem=False),
    "cut_prompt": FindingKind("example with a prompt that is shortened to fit max_length", is_problem=False),
    "cut_turns": FindingKind(
        "conversation that loses its oldest turns, or the ends of its prompts, to fit max_length", is_problem=False
    ),
    "cut_text": FindingKind("text cut at its end to fit max_length", is_problem=False),
    "cut_tags": FindingKind("example that loses its last words to fit max_length", is_problem=False),
    "long_outlier": FindingKind("example far longer than the others", is_problem=False),
}
"""Every kind of finding, by its name in JSON files. A check that finds a new kind of defect adds an entry here."""


@dataclass(frozen=True)
class Finding:
    """Examples of a split with the same kind of defect.

    Attributes:
        kind: key of `FINDING_KINDS`.
        count: number of examples, or of labels for a defect of the labels.
        samples: location and detail of the first examples, such as "rows.jsonl: line 3: 😀".
        rows: index in the split of the row of each sample, -1 for a sample without a row; empty for rows that were
            dropped when they were read.
    """

    kind: str
    count: int
    samples: tuple[str, ...]
    rows: tuple[int, ...] = ()

    @property
    def is_problem(self) -> bool:
        """Whether the data should be mended before a training."""
        return FINDING_KINDS[self.kind].is_problem

    @property
    def text(self) -> str:
        """The finding without its samples, such as "3 × example with an answer that is cut at its end"."""
        return f"{self.count:,} × {FINDING_KINDS[self.kind].text}"

    def line(self) -> str:
        """Return the finding in one line."""
        return f"{self.text} (first: {self.samples[0]})"


@dataclass
class _Tally:
    count: int = 0
    samples: list[tuple[int, str]] = field(default_factory=list)


class FindingCounter:
    """Counts the findings of the examples of a split."""

    def __init__(self, max_samples: int = 3) -> None:
        """Start at zero.

        Args:
            max_samples: number of samples of each kind.
        """
        self.max_samples = max_samples
        self._tallies: dict[str, _Tally] = {}

    def add(self, kind: str, row: int, detail: str = "") -> None:
        """Count an example.

        Args:
            kind: key of `FINDING_KINDS`.
            row: index of the example's row in the split.
            detail: part of the example that has the defect; empty if the location says enough.
        """
        tally = self._tallies.setdefault(kind, _Tally())
        tally.count += 1
        if len(tally.samples) < self.max_samples:
            tally.samples.append((row, detail))

    def add_all(self, kind: str, count: int, samples: Iterable[tuple[int, str]]) -> None:
        """Count several examples.

        Args:
            kind: key of `FINDING_KINDS`.
            count: number of examples; 0 adds nothing.
            samples: row (-1: none) and detail of the first `max_samples` of them.
        """
        if count:
            tally = self._tallies.setdefault(kind, _Tally())
            tally.count += count
            tally.samples += list(samples)[: self.max_samples - len(tally.samples)]

    def findings(self, location: Callable[[int], str], kinds: Iterable[str] = FINDING_KINDS) -> list[Finding]:
        """Return the findings in the order of `FINDING_KINDS`.

        Args:
            location: function that returns the location of a row of the split.
            kinds: kinds to return.
        """

        def sample(row: int, detail: str) -> str:
            return ": ".join(filter(None, [location(row) if row >= 0 else "", detail]))

        return [
            Finding(
                kind,
                tally.count,
                tuple(sample(row, detail) for row, detail in tally.samples),
                tuple(row for row, _ in tally.samples),
            )
            for kind in kinds
            if (tally := self._tallies.get(kind))
        ]
