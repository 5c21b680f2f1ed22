"""Which shape a person's rows have: recognised by their fields, or made of a template, and said aloud."""

from collections.abc import Sequence
from typing import NamedTuple

from peftly.data.formats import Rows
from peftly.data.templates import ALPACA, Shape, Template, label_of
from peftly.errors import DataError

__all__ = ["recognise"]


class _Known(NamedTuple):
    words: str
    fields: tuple[str, ...]
    kind: str
    template: str | None

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

_TARGETS = ("label", "labels", "target", "completion", "output", "answer", "response")
_FEW_LABELS = 20
_FEW_ROWS = 0.1


def recognise(rows: Rows, template: str | None, target: str | None) -> tuple[Shape, list[str]]:
    """Return the shape of the training rows, and what was guessed to find it.

    Args:
        rows: the training rows.
        template: the person's own, or None for that of a recognised shape.
        target: the field to learn, or None to guess.

    Raises:
        DataError: nothing is recognised, or template and target do not fit the fields there are.
    """
    fields = rows.fields
    if target is not None and target not in fields:
        raise DataError(f"{rows.name}: target {target!r} is no field of the rows; they have {_listed(fields)}")
    if template is None and target is None:
        shape, notes = _known(rows)
    else:
        shape, notes = _own(rows, template, target)
    if shape.kind == "label":
        labels = {label_of(row, shape.target, rows.where(index)) for index, row in enumerate(rows.rows)}
        shape = Shape(shape.kind, shape.template, shape.target, tuple(sorted(labels)))
    used = {*Template(shape.template or "").fields, shape.target}
    unused = [name for name in fields if name not in used]
    return shape, [*notes, *([f"fields not used: {_listed(unused)}"] if unused else [])]


def _known(rows: Rows) -> tuple[Shape, list[str]]:
    fields = set(rows.fields)
    matching = [known for known in _KNOWN if fields.issuperset(known.fields)]
    if not matching:
        raise DataError(
            f"{rows.name}: the rows have {_listed(rows.fields)}, which is none of the shapes known "
            f"({'; '.join(' + '.join(known.fields) for known in _KNOWN)}); give a template and a target"
        )
    taken, others = matching[0], [known for known in matching[1:] if not set(known.fields) <= set(matching[0].fields)]
    notes = [f"read as {taken.words} ({' + '.join(taken.fields)})" + _prompt_words(taken.template)]
    notes += [f"could be read as {other.words} too; give a template and a target for that" for other in others]
    return Shape(taken.kind, taken.template, taken.target), notes


def _own(rows: Rows, template: str | None, target: str | None) -> tuple[Shape, list[str]]:
    notes = []
    if template is None:
        if target == "text" or "text" not in rows.fields:
            raise DataError(
                f"{rows.name}: target {target!r} needs a template for the prompt, such as "
                f"'{{{next((name for name in rows.fields if name != target), 'text')}}}\\nAnswer:'"
            )
        template = next(known.template for known in _KNOWN if known.kind == "label") or ""
        notes.append(f"no template given{_prompt_words(template)}")
    parsed = Template(template)
    parsed.check(rows.fields)
    if target is None:
        target = _guessed_target(rows, parsed)
        notes.append(f"no target given: {target!r} is learned")
    if target in parsed.fields:
        raise DataError(f"template {template!r} shows the field {target!r}, which is the target to learn; take it out")
    kind = "label" if _is_label(rows, target) else "completion"
    how = "its values are compared as labels" if kind == "label" else "its values are free text"
    return Shape(kind, template, target), [*notes, f"target {target!r}: {how}"]


def _guessed_target(rows: Rows, template: Template) -> str:
    left = [name for name in rows.fields if name not in template.fields]
    by_name = {name.lower(): name for name in reversed(left)}
    named = next((by_name[name] for name in _TARGETS if name in by_name), None)
    if named is not None:
        return named
    if len(left) == 1:
        return left[0]
    raise DataError(
        f"{rows.name}: which field is to be learned? Give a target; besides the template's there are {_listed(left)}"
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
