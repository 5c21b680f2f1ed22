"""Table of the row formats that are detected by the names of the fields. docs/data.md shows it."""

from typing import NamedTuple

from peftly.data.templates import ALPACA
from peftly.data.types import TaskName

__all__ = ["FORMATS", "KnownFormat"]


class KnownFormat(NamedTuple):
    """A row format that is detected by the names of the fields.

    Attributes:
        title: name of the format, for messages.
        inputs: names of the fields that the model reads. A field that can be missing, such as the `input` of
            instructions, is in the template only.
        targets: possible names of the field to learn; the first one that the rows have is used.
        kind, template, pair: as of `RowFormat`.
    """

    title: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    kind: str
    template: str | None
    pair: str | None = None

    def target_in(self, fields: set[str]) -> str | None:
        """Return the name of the field to learn; None if rows with these fields do not have the format."""
        if not fields.issuperset(self.inputs):
            return None
        return next((name for name in self.targets if name in fields), None)

    def fields(self, target: str | None = None) -> str:
        """Return the names of the fields for messages, with a known target or with all possible ones."""
        return " + ".join((*self.inputs, target or "|".join(self.targets)))


_LABELS = ("label", "labels")
_PAIRS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("premise", "hypothesis", _LABELS),
    ("sentence1", "sentence2", _LABELS),
    ("question1", "question2", _LABELS),
    ("question", "sentence", _LABELS),
    ("question", "passage", (*_LABELS, "answer")),
    ("query", "passage", _LABELS),
    ("query", "document", _LABELS),
    ("claim", "evidence", _LABELS),
    ("text1", "text2", _LABELS),
    ("sentence_A", "sentence_B", _LABELS),
    ("title", "content", _LABELS),
)
"""Names of the two texts, and of their label, of usual data sets (GLUE, SuperGLUE, SNLI, FEVER, SICK, DBpedia)."""

_TEXTS = ("text", "sentence", "content", "review", "tweet")


def _titled(*fields: str) -> str:
    """Return a template with the name of each field in front of its text, as in "Question: {question}"."""
    return "\n".join(f"{_title(field)}: {{{field}}}" for field in fields)


def _title(field: str) -> str:
    """Return a field's name as a word in front of its text: "Sentence 1" for "sentence1"."""
    name = field[:1].upper() + field[1:].replace("_", " ")
    return f"{name[:-1]} {name[-1]}" if name[-1].isdigit() else name


# In each list, the first format whose fields the rows have is used.
_GENERATION_FORMATS = (
    KnownFormat("chat messages", (), ("messages",), "chat", None),
    KnownFormat("ShareGPT conversations", (), ("conversations",), "chat", None),
    KnownFormat(
        "instructions with context",
        ("instruction", "context"),
        ("response", "output", "answer"),
        "alpaca",
        _titled("instruction", "context") + "\nAnswer:",
    ),
    KnownFormat("instructions", ("instruction",), ("output", "response", "answer", "chosen"), "alpaca", ALPACA),
    KnownFormat("prompt and completion", ("prompt",), ("completion", "response", "chosen"), "completion", "{prompt}"),
    *(
        KnownFormat(
            "text, question and answer",
            (context, "question"),
            ("answer", "answers"),
            "completion",
            _titled(context, "question") + "\nAnswer:",
        )
        for context in ("context", "passage")
    ),
    KnownFormat(
        "question and answer",
        ("question",),
        ("answer", "answers", "response", "chosen"),
        "completion",
        _titled("question") + "\nAnswer:",
    ),
    KnownFormat("query and response", ("query",), ("response", "answer"), "completion", "Query: {query}\nResponse:"),
    KnownFormat("input and output", ("input",), ("output", "target"), "completion", "Input: {input}\nOutput:"),
    KnownFormat("source and target", ("source",), ("target",), "completion", "Source: {source}\nTarget:"),
    *(
        KnownFormat(f"{text} and summary", (text,), ("summary", "highlights"), "completion", f"{{{text}}}\nSummary:")
        for text in ("article", "document", "dialogue")
    ),
    *(
        KnownFormat("two texts and a label", (first, second), targets[:2], "label", _titled(first, second) + "\nLabel:")
        for first, second, targets in _PAIRS
    ),
    *(KnownFormat(f"{text} and label", (text,), _LABELS, "label", f"{{{text}}}\nLabel:") for text in _TEXTS),
    KnownFormat("text and summary", ("text",), ("summary",), "completion", "{text}\nSummary:"),
    KnownFormat("plain text", (), ("text",), "text", None),
)
_CLASSIFICATION_FORMATS = (  # a classifier generates no answer, so the templates have no cue for one
    *(
        KnownFormat("two texts and a label", (first, second), targets, "label", f"{{{first}}}", second)
        for first, second, targets in _PAIRS
    ),
    *(KnownFormat(f"{text} and label", (text,), _LABELS, "label", f"{{{text}}}") for text in _TEXTS),
)
_TAGGING_FORMATS = tuple(
    KnownFormat("words and tags", (words,), ("tags", "ner_tags", "labels", "pos_tags"), "tags", f"{{{words}}}")
    for words in ("tokens", "words")
)
FORMATS: dict[TaskName, tuple[KnownFormat, ...]] = {
    "causal_lm": _GENERATION_FORMATS,
    "seq2seq_lm": tuple(known for known in _GENERATION_FORMATS if known.template is not None),
    "sequence_classification": _CLASSIFICATION_FORMATS,
    "token_classification": _TAGGING_FORMATS,
}
"""Row formats that each task learns. The first one that fits the fields is used."""
