"""Notes on assumptions about the texts of a data set, one sentence each."""

from dataclasses import dataclass

from peftly.data.config import AddSpace, LongTexts
from peftly.data.formats import RowFormat
from peftly.data.report import counted
from peftly.data.templates import merges_into_word
from peftly.data.types import Example

__all__ = ["SpaceCounts", "label_space_notes", "rendered_notes", "truncation_notes"]


@dataclass
class SpaceCounts:
    """Examples between whose prompt and completion a space was added, or may be missing.

    Attributes:
        added: number of completions that got a space in front.
        joined: number of completions that go on inside the last word of their prompts, as they are written.
        first_added, first_joined: the end of the prompt and the start of the completion of the first of them.
    """

    added: int = 0
    joined: int = 0
    first_added: str = ""
    first_joined: str = ""

    def count(self, example: Example) -> None:
        """Count an example."""
        if example.has_added_space:
            self.added += 1
            self.first_added = self.first_added or _boundary(example)
        elif example.prompt[-1:].isalnum() and merges_into_word(example.prompt, example.completion):
            self.joined += 1
            self.first_joined = self.first_joined or _boundary(example)

    def notes(self, add_space: AddSpace) -> list[str]:
        """Return a note for each kind of examples."""
        notes = []
        if self.added:
            notes.append(
                f"{counted(self.added, 'completion')} got a space in front, since the prompt ends without one (first: "
                f"{self.first_added}); --set data.add_space=false leaves them as written"
            )
        if self.joined and add_space == "auto":
            notes.append(
                f"{counted(self.joined, 'completion')} joined to the last word of the prompt, as written (first: "
                f"{self.first_joined}); --set data.add_space=true adds a space"
            )
        return notes


def _boundary(example: Example) -> str:
    """Return the end of the prompt and the start of the completion, as in "'Label:' + ' complaint'"."""
    return f"{example.prompt[-20:]!r} + {example.completion[:20]!r}"


def label_space_notes(row_format: RowFormat) -> list[str]:
    """Return a note if labels follow a space that the template does not have."""
    tail = (row_format.template or "").rpartition("}")[2]
    completions = [row_format.completion(label) for label in row_format.labels] if row_format.kind == "label" else []
    spaced = next((text for text in completions if text.startswith(" ") and not tail.endswith(" ")), None)
    if spaced is None:
        return []
    return [f"labels get a space in front (first: {tail[-20:] + spaced!r}); --set data.add_space=false leaves it out"]


def truncation_notes(row_format: RowFormat, long_texts: LongTexts, truncated: int) -> list[str]:
    """Return a note on the setting for long plain texts where it would help, or where it has no effect."""
    if row_format.kind == "text" and truncated:
        return ["long texts lose their ends; --set data.long_texts=pieces trains on all of their tokens"]
    if row_format.kind != "text" and long_texts == "pieces":
        return [f"data.long_texts=pieces is for plain texts; a long example of kind {row_format.kind!r} is truncated"]
    return []


def rendered_notes(rendered: int, total: int) -> list[str]:
    """Return a note if plain texts are rendered conversations.

    Args:
        rendered: number of such texts.
        total: number of all texts.
    """
    if not rendered:
        return []
    chats = "is a rendered chat" if rendered == 1 else "are rendered chats"
    return [
        f"{rendered:,} of {counted(total, 'text')} {chats}: questions are trained like answers; to train answers only, "
        "give rows with messages, or with prompt and completion"
    ]
