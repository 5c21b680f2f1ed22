"""Which shape a person's rows have: recognised by their fields, or made of a template, and said aloud."""

from dataclasses import replace
from typing import Literal, NamedTuple

from peftly.data.formats import RowFormat
from peftly.data.readers import Rows
from peftly.data.templates import ALPACA, Template, label_of, listed, words_of
from peftly.data.types import TaskName
from peftly.errors import DataError

__all__ = ["holds", "recognise"]


class _Known(NamedTuple):
    words: str
    fields: tuple[str, ...]
    kind: str
    template: str | None
    pair: str | None = None

    @property
    def target(self) -> str:
        """The last of the fields is the one that is learned."""
        return self.fields[-1]


_KNOWN = (  # the first whose fields the rows have is taken
    _Known("chat messages", ("messages",), "chat", None),
    _Known("ShareGPT conversations", ("conversations",), "chat", None),
    _Known("instructions", ("instruction", "output"), "alpaca", ALPACA),
    _Known("prompt and completion", ("prompt", "completion"), "completion", "{prompt}"),
    _Known("question and answer", ("question", "answer"), "completion", "Question: {question}\nAnswer:"),
    _Known("text and label", ("text", "label"), "label", "{text}\nLabel:"),
    _Known("plain text", ("text",), "text", None),
)

_CLASSIFIED = (  # what a classifier reads is the text alone: nothing has to call for an answer
    _Known("two texts and a label", ("premise", "hypothesis", "label"), "label", "{premise}", "hypothesis"),
    _Known("two texts and a label", ("sentence1", "sentence2", "label"), "label", "{sentence1}", "sentence2"),
    _Known("text and label", ("text", "label"), "label", "{text}"),
    _Known("text and label", ("sentence", "label"), "label", "{sentence}"),
)
_TAGGED = (
    _Known("words and tags", ("tokens", "tags"), "tags", "{tokens}"),
    _Known("words and tags", ("tokens", "ner_tags"), "tags", "{tokens}"),
)
_OF_TASK: dict[TaskName, tuple[_Known, ...]] = {
    "causal_lm": _KNOWN,
    "seq2seq_lm": tuple(known for known in _KNOWN if known.template is not None),
    "sequence_classification": _CLASSIFIED,
    "token_classification": _TAGGED,
}

_TARGETS = ("label", "labels", "target", "completion", "output", "answer", "response")
_FEW_LABELS = 20
_FEW_ROWS = 0.1


def holds(rows: Rows, template: str | None, target: str | None) -> Literal["tags", "labels", "texts"]:
    """Say what there is to learn in the rows, before it is decided which task that makes.

    Args:
        rows, template, target: as for `recognise`.
    """
    fields = set(rows.fields)
    if target is not None and any(isinstance(row.get(target), list) for row in rows.rows):
        return "tags" if target not in ("messages", "conversations") else "texts"
    if template is None and target is None:
        if any(fields.issuperset(known.fields) for known in _TAGGED):
            return "tags"
        matching = (known for known in (*_KNOWN[:-1], *_CLASSIFIED) if fields.issuperset(known.fields))
        known = next(matching, None)
        return "labels" if known is not None and known.kind == "label" else "texts"
    if target is None:
        target = _guessed_target(rows, Template(template or ""))
    return "labels" if _is_label(rows, target) else "texts"


def recognise(
    rows: Rows, template: str | None, target: str | None, task: TaskName = "causal_lm"
) -> tuple[RowFormat, list[str]]:
    """Return the shape of the training rows, and what was guessed to find it.

    Args:
        rows: the training rows.
        template: the person's own, or None for that of a recognised shape.
        target: the field to learn, or None to guess.
        task: what is to be made of a row.

    Raises:
        DataError: nothing is recognised, or template and target do not fit the fields there are.
    """
    fields = rows.fields
    if target is not None and target not in fields:
        raise DataError(f"{rows.name}: target {target!r} is no field of the rows; they have {listed(fields)}")
    if task == "token_classification":
        row_format, notes = _tagged(rows, template, target)
    elif template is None and target is None:
        row_format, notes = _known(rows, task)
    else:
        row_format, notes = _own(rows, template, target, task)
    row_format = replace(row_format, labels=_labels(rows, row_format))
    if task in ("sequence_classification", "token_classification") and len(row_format.labels) < 2:
        raise DataError(
            f"{rows.name}: {row_format.target!r} is {listed(row_format.labels)} in every row; a classifier needs two labels"
        )
    used = {*Template(row_format.template or "").fields, row_format.target, row_format.pair}
    unused = [name for name in fields if name not in used]
    return row_format, [*notes, *([f"fields not used: {listed(unused)}"] if unused else [])]


def _labels(rows: Rows, row_format: RowFormat) -> tuple[str, ...]:
    """Return the labels or tags that the rows have, sorted."""
    found: set[str] = set()
    for index, row in enumerate(rows.rows):
        if row_format.kind == "label":
            found.add(label_of(row, row_format.target, rows.where(index)))
        elif row_format.kind == "tags":
            found.update(words_of(row, row_format.words_field, row_format.target, rows.where(index))[1])
    return tuple(sorted(found))


def _known(rows: Rows, task: TaskName) -> tuple[RowFormat, list[str]]:
    fields, shapes = set(rows.fields), _OF_TASK[task]
    matching = [known for known in shapes if fields.issuperset(known.fields)]
    if not matching:
        raise DataError(
            f"{rows.name}: the rows have {listed(rows.fields)}, which is none of the shapes known for {task} "
            f"({'; '.join(' + '.join(known.fields) for known in shapes)}); give a template and a target"
        )
    taken, others = matching[0], [known for known in matching[1:] if not set(known.fields) <= set(matching[0].fields)]
    words = _prompt_words(taken.template) if task in ("causal_lm", "seq2seq_lm") else ""
    notes = [f"read as {taken.words} ({' + '.join(taken.fields)})" + words]
    notes += [f"could be read as {other.words} too; give a template and a target for that" for other in others]
    return RowFormat(taken.kind, taken.template, taken.target, pair=taken.pair), notes


def _tagged(rows: Rows, template: str | None, target: str | None) -> tuple[RowFormat, list[str]]:
    """Return the shape of rows with words and tags, which stand in lists that no template can change."""
    if template is not None:
        raise DataError(f"template {template!r}: token classification reads the words as they are; leave it out")
    if target is None:
        return _known(rows, "token_classification")
    if "tokens" not in rows.fields or target == "tokens":
        raise DataError(f"{rows.name}: the words to tag must stand in 'tokens'; the rows have {listed(rows.fields)}")
    return RowFormat("tags", "{tokens}", target), [f"read as words and tags (tokens + {target})"]


def _own(rows: Rows, template: str | None, target: str | None, task: TaskName) -> tuple[RowFormat, list[str]]:
    notes = []
    if template is None:
        if target == "text" or "text" not in rows.fields:
            raise DataError(
                f"{rows.name}: target {target!r} needs a template for the prompt, such as "
                f"'{{{next((name for name in rows.fields if name != target), 'text')}}}\\nAnswer:'"
            )
        template = next(known.template for known in _OF_TASK[task] if known.target == "label" and not known.pair) or ""
        notes.append(f"no template given{_prompt_words(template)}")
    parsed = Template(template)
    parsed.check(rows.fields)
    if target is None:
        target = _guessed_target(rows, parsed)
        notes.append(f"no target given: {target!r} is learned")
    if target in parsed.fields:
        raise DataError(f"template {template!r} shows the field {target!r}, which is the target to learn; take it out")
    kind = "label" if task == "sequence_classification" or _is_label(rows, target) else "completion"
    how = "its values are compared as labels" if kind == "label" else "its values are free text"
    return RowFormat(kind, template, target), [*notes, f"target {target!r}: {how}"]


def _guessed_target(rows: Rows, template: Template) -> str:
    left = [name for name in rows.fields if name not in template.fields]
    by_name = {name.lower(): name for name in reversed(left)}
    named = next((by_name[name] for name in _TARGETS if name in by_name), None)
    if named is not None:
        return named
    if len(left) == 1:
        return left[0]
    raise DataError(
        f"{rows.name}: which field is to be learned? Give a target; besides the template's there are {listed(left)}"
    )


def _is_label(rows: Rows, target: str) -> bool:
    if target.lower() in ("label", "labels"):
        return True
    distinct = set()
    for row in rows.rows:
        value = row.get(target)
        if not isinstance(value, str | int) or not str(value).strip():
            return False
        distinct.add(str(value).strip())
    return len(distinct) <= min(_FEW_LABELS, _FEW_ROWS * len(rows))


def _prompt_words(template: str | None) -> str:
    return "" if template is None else f", the prompt as {template!r}"
