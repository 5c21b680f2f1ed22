"""Detection of the row format from the fields of the rows, or from the user's template and target."""

from dataclasses import replace
from typing import Literal, NamedTuple

from peftly.data.fields import label_field, words_and_tags
from peftly.data.formats import RowFormat
from peftly.data.rows import Rows, quoted
from peftly.data.templates import ALPACA, Template, alpaca_template
from peftly.data.types import TaskName
from peftly.errors import DataError

__all__ = ["TargetKind", "detect_format", "detect_target_kind"]

TargetKind = Literal["tags", "labels", "texts"]
"""Kind of the training targets: a tag for each word, a label for each text, or free text."""


class _KnownFormat(NamedTuple):
    """A row format that is detected by the names of the fields.

    Attributes:
        title: name of the format, for messages.
        fields: names of the fields; the last one is the target.
        kind, template, pair: as of `RowFormat`.
    """

    title: str
    fields: tuple[str, ...]
    kind: str
    template: str | None
    pair: str | None = None

    @property
    def target(self) -> str:
        return self.fields[-1]


# In each list, the first format whose fields the rows have is used.
_GENERATION_FORMATS = (
    _KnownFormat("chat messages", ("messages",), "chat", None),
    _KnownFormat("ShareGPT conversations", ("conversations",), "chat", None),
    _KnownFormat("instructions", ("instruction", "output"), "alpaca", ALPACA),
    _KnownFormat("prompt and completion", ("prompt", "completion"), "completion", "{prompt}"),
    _KnownFormat("question and answer", ("question", "answer"), "completion", "Question: {question}\nAnswer:"),
    _KnownFormat("text and label", ("text", "label"), "label", "{text}\nLabel:"),
    _KnownFormat("plain text", ("text",), "text", None),
)
_CLASSIFICATION_FORMATS = (  # a classifier generates no answer, so the templates have no cue for one
    _KnownFormat("two texts and a label", ("premise", "hypothesis", "label"), "label", "{premise}", "hypothesis"),
    _KnownFormat("two texts and a label", ("sentence1", "sentence2", "label"), "label", "{sentence1}", "sentence2"),
    _KnownFormat("text and label", ("text", "label"), "label", "{text}"),
    _KnownFormat("text and label", ("sentence", "label"), "label", "{sentence}"),
)
_TAGGING_FORMATS = (
    _KnownFormat("words and tags", ("tokens", "tags"), "tags", "{tokens}"),
    _KnownFormat("words and tags", ("tokens", "ner_tags"), "tags", "{tokens}"),
)
_FORMATS: dict[TaskName, tuple[_KnownFormat, ...]] = {
    "causal_lm": _GENERATION_FORMATS,
    "seq2seq_lm": tuple(known for known in _GENERATION_FORMATS if known.template is not None),
    "sequence_classification": _CLASSIFICATION_FORMATS,
    "token_classification": _TAGGING_FORMATS,
}

_TARGET_NAMES = ("label", "labels", "target", "completion", "output", "answer", "response")
_MAX_LABELS = 20
_MAX_LABELS_PER_ROW = 0.1


def detect_target_kind(rows: Rows, template: str | None, target: str | None) -> TargetKind:
    """Return the kind of the targets in the rows, from which a task can be chosen.

    Args:
        rows, template, target: as for `detect_format`.

    Raises:
        DataError: the target cannot be guessed.
    """
    fields = set(rows.fields)
    if target is not None and any(isinstance(row.get(target), list) for row in rows.rows):
        return "tags" if target not in ("messages", "conversations") else "texts"
    if template is None and target is None:
        if any(fields.issuperset(known.fields) for known in _TAGGING_FORMATS):
            return "tags"
        candidates = (*_GENERATION_FORMATS[:-1], *_CLASSIFICATION_FORMATS)
        match = next((known for known in candidates if fields.issuperset(known.fields)), None)
        return "labels" if match is not None and match.kind == "label" else "texts"
    if target is None:
        target = _guess_target(rows, Template(template or ""))
    return "labels" if _has_labels(rows, target) else "texts"


def detect_format(
    rows: Rows, template: str | None, target: str | None, task: TaskName = "causal_lm"
) -> tuple[RowFormat, list[str]]:
    """Detect the row format of the training rows.

    Args:
        rows: training rows.
        template: template of the prompt; None: template of the first known format that the rows have.
        target: name of the field to learn; None: guessed.
        task: task of the model.

    Returns:
        The row format, and one note for each assumption.

    Raises:
        DataError: no known format has the fields of the rows, or template and target do not fit the fields.
    """
    fields = rows.fields
    if target is not None and target not in fields:
        raise DataError(f"{rows.name}: target {target!r} is no field of the rows; they have {quoted(fields)}")
    if task == "token_classification":
        row_format, notes = _tagging_format(rows, template, target)
    elif template is None and target is None:
        row_format, notes = _known_format(rows, task)
    else:
        row_format, notes = _custom_format(rows, template, target, task)
    row_format = replace(row_format, labels=_labels(rows, row_format))
    if task in ("sequence_classification", "token_classification") and len(row_format.labels) < 2:
        raise DataError(
            f"{rows.name}: {row_format.target!r} is {quoted(row_format.labels)} in every row; a classifier needs two "
            "labels"
        )
    used = {*Template(row_format.template or "").fields, row_format.target, row_format.pair}
    unused = [name for name in fields if name not in used]
    return row_format, [*notes, *([f"fields not used: {quoted(unused)}"] if unused else [])]


def _labels(rows: Rows, row_format: RowFormat) -> tuple[str, ...]:
    """Return the labels or tags of the rows, sorted."""
    labels: set[str] = set()
    for index, row in enumerate(rows.rows):
        if row_format.kind == "label":
            labels.add(label_field(row, row_format.target, rows.location(index)))
        elif row_format.kind == "tags":
            labels.update(words_and_tags(row, row_format.words_field, row_format.target, rows.location(index))[1])
    return tuple(sorted(labels))


def _known_format(rows: Rows, task: TaskName) -> tuple[RowFormat, list[str]]:
    fields, formats = set(rows.fields), _FORMATS[task]
    matches = [known for known in formats if fields.issuperset(known.fields)]
    if not matches:
        raise DataError(
            f"{rows.name}: the rows have {quoted(rows.fields)}, which is none of the row formats known for {task} "
            f"({'; '.join(' + '.join(known.fields) for known in formats)}); give a template and a target"
        )
    if matches[0].kind == "alpaca":
        matches[0] = matches[0]._replace(template=alpaca_template(_alpaca_fields(rows)))
    match, others = matches[0], [known for known in matches[1:] if not set(known.fields) <= set(matches[0].fields)]
    template_note = _template_note(match.template) if task in ("causal_lm", "seq2seq_lm") else ""
    notes = [f"read as {match.title} ({' + '.join(match.fields)}){template_note}"]
    notes += [f"could be read as {other.title}, too; give a template and a target for that" for other in others]
    return RowFormat(match.kind, match.template, match.target, pair=match.pair), notes


def _alpaca_fields(rows: Rows) -> set[str]:
    """Return the fields of the rows, without a "history" that is no list and a "system" that is no text."""
    kinds = {"history": list, "system": str}
    return {
        name
        for name in rows.fields
        if name not in kinds or any(row.get(name) for row in rows.rows if isinstance(row.get(name), kinds[name]))
    }


def _tagging_format(rows: Rows, template: str | None, target: str | None) -> tuple[RowFormat, list[str]]:
    """Return the format of rows with lists of words and tags, which allow no template."""
    if template is not None:
        raise DataError(f"template {template!r}: token classification reads the words as they are; leave it out")
    if target is None:
        return _known_format(rows, "token_classification")
    if "tokens" not in rows.fields or target == "tokens":
        raise DataError(f"{rows.name}: the words to tag must be in 'tokens'; the rows have {quoted(rows.fields)}")
    return RowFormat("tags", "{tokens}", target), [f"read as words and tags (tokens + {target})"]


def _custom_format(rows: Rows, template: str | None, target: str | None, task: TaskName) -> tuple[RowFormat, list[str]]:
    """Return the format of rows for which the user gave a template, a target or both."""
    notes = []
    if template is None:
        if target == "text" or "text" not in rows.fields:
            raise DataError(
                f"{rows.name}: target {target!r} needs a template for the prompt, such as "
                f"'{{{next((name for name in rows.fields if name != target), 'text')}}}\\nAnswer:'"
            )
        template = next(known.template for known in _FORMATS[task] if known.target == "label" and not known.pair) or ""
        notes.append(f"no template given{_template_note(template)}")
    parsed = Template(template)
    parsed.check(rows.fields)
    if target is None:
        target = _guess_target(rows, parsed)
        notes.append(f"no target given: {target!r} is learned")
    if target in parsed.fields:
        raise DataError(f"template {template!r} shows the field {target!r}, which is the target to learn; take it out")
    kind = "label" if task == "sequence_classification" or _has_labels(rows, target) else "completion"
    use = "its values are compared as labels" if kind == "label" else "its values are free text"
    return RowFormat(kind, template, target), [*notes, f"target {target!r}: {use}"]


def _guess_target(rows: Rows, template: Template) -> str:
    """Return the field to learn: the only field that the template does not use, or one with a usual name."""
    candidates = [name for name in rows.fields if name not in template.fields]
    by_lowercase = {name.lower(): name for name in reversed(candidates)}
    named = next((by_lowercase[name] for name in _TARGET_NAMES if name in by_lowercase), None)
    if named is not None:
        return named
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(
        f"{rows.name}: which field is to be learned? Give a target; besides the template's there are "
        f"{quoted(candidates)}"
    )


def _has_labels(rows: Rows, target: str) -> bool:
    """Return whether the values of a field are labels: the field is named so, or has few distinct values."""
    if target.lower() in ("label", "labels"):
        return True
    distinct = set()
    for row in rows.rows:
        value = row.get(target)
        if not isinstance(value, str | int) or not str(value).strip():
            return False
        distinct.add(str(value).strip())
        if len(distinct) > _MAX_LABELS:
            return False
    return len(distinct) <= _MAX_LABELS_PER_ROW * len(rows)


def _template_note(template: str | None) -> str:
    return "" if template is None else f", the prompt as {template!r}"
