"""Detection of the row format from the fields of the rows, or from the user's template and target."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from peftly.data.fields import is_missing
from peftly.data.formats import RowFormat
from peftly.data.inputs import input_fields, is_identifier, template_option
from peftly.data.known_formats import FORMATS, KnownFormat
from peftly.data.labels import are_truth_values, can_be_labels, has_labels, labels_in
from peftly.data.messages import CONVERSATION_FIELDS, are_messages, has_opening
from peftly.data.presets import PRESETS, fits_preset
from peftly.data.report import counted
from peftly.data.rows import Rows, quoted
from peftly.data.templates import Template, with_optional_lines
from peftly.data.types import TaskName
from peftly.data.usable import mark_field
from peftly.errors import DataError

__all__ = ["TargetKind", "detect_format", "detect_target_kind"]

TargetKind = Literal["tags", "labels", "texts"]
"""Kind of the training targets: a tag for each word, a label for each text, or free text."""


class _Match(NamedTuple):
    """A known format that rows have, and the name of the field to learn."""

    known: KnownFormat
    target: str

    @property
    def fields(self) -> set[str]:
        return {*self.known.inputs, *Template(self.known.template or "").fields, self.target}

    def covers(self, other: "_Match", fields: list[str]) -> bool:
        """Return whether the format uses all fields that another one uses, of those that the rows have."""
        return other.fields & set(fields) <= self.fields


_MAX_FORMATS = 4
"""Number of formats that a message lists."""

_TARGET_NAMES = ("label", "labels", "target", "completion", "output", "answer", "response")


def detect_target_kind(rows: Rows, template: str | None, target: str | None) -> TargetKind:
    """Return the kind of the targets in the rows, from which a task can be chosen.

    Args:
        rows, template, target: as for `detect_format`.

    Raises:
        DataError: the target cannot be guessed.
    """
    value = None if target is None else next((v for row in rows.rows if (v := row.get(target))), None)
    if isinstance(value, list):
        return "tags" if _reads_words(rows, template) and not isinstance(value[0], Mapping) else "texts"
    if template is None and target is None:
        tagged = _matches(rows, "token_classification")
        if tagged and isinstance(rows.rows[0].get(tagged[0].known.inputs[0]), list):
            return "tags"
        matches = _matches(rows, "causal_lm") or _matches(rows, "sequence_classification") or tagged
        if not matches:
            _check_no_preferences(rows)
            raise _unknown_fields(rows, "none of the known row formats (docs/data.md has a table)")
        return "labels" if _kind(rows, matches[0]) == "label" else "texts"
    if target is None:
        return "labels" if has_labels(rows, _guess_target(rows, Template(template or ""))) else "texts"
    return "labels" if has_labels(rows, target) or can_be_labels(rows, target) else "texts"


def _reads_words(rows: Rows, template: str | None) -> bool:
    """Return whether prompts are lists of words: without a template, or with one that names a list."""
    names = Template(template or "").fields
    return template is None or any(isinstance(rows.rows[0].get(name), list) for name in names)


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
        DataError: no known format has the fields of the rows, template and target do not fit the fields, or a label
            cannot be used.
    """
    if target is not None and target not in rows.fields:
        raise DataError(f"{rows.name}: target {target!r} is no field of the rows; they have {quoted(rows.fields)}")
    if task == "token_classification":
        row_format, notes = _tagging_format(rows, template, target)
    elif template is None and target is None:
        row_format, notes = _known_format(rows, task)
    else:
        row_format, notes = _custom_format(rows, template, target, task)
    labels, label_notes = labels_in(rows, row_format, needs_two=task.endswith("classification"))
    return replace(row_format, labels=labels), [*notes, *label_notes, *_notes_on_unused(rows, row_format)]


def _matches(rows: Rows, task: TaskName, target: str | None = None) -> list[_Match]:
    """Return the known formats that rows have, with their targets, or with a given target in place of theirs."""
    fields = set(rows.fields)
    if target is not None:
        return [
            _Match(known, target)
            for known in FORMATS[task]
            if known.inputs and fields.issuperset(known.inputs) and target not in known.inputs
        ]
    return [_Match(known, found) for known in FORMATS[task] if (found := known.target_in(fields))]


def _kind(rows: Rows, match: _Match) -> str:
    """Return the kind of the row format of a match. Answers that are all yes or no, as in BoolQ, are labels.

    A text behind a prompt without a template stays a completion, which is learned as it is written, with its blanks.
    """
    # Asked first, since it ends at the first row with another answer.
    if match.known.kind != "completion" or not are_truth_values(rows, match.target):
        return match.known.kind
    is_written = match.known.template == "{prompt}" and all(isinstance(row.get(match.target), str) for row in rows.rows)
    return "completion" if is_written else "label"


def _known_format(rows: Rows, task: TaskName) -> tuple[RowFormat, list[str]]:
    _check_no_preferences(rows)
    matches = _matches(rows, task)
    if not matches and task != "causal_lm" and (field := _conversations(rows)) is not None:
        raise DataError(
            f"{rows.name}: {field!r} holds conversations, which a causal language model alone learns; give rows with "
            "'prompt' and 'completion'"
        )
    if not matches:
        near = [known for known in FORMATS[task] if not {*known.inputs, *known.targets}.isdisjoint(rows.fields)]
        formats = [known.fields() for known in near or FORMATS[task]]
        listed = "; ".join(formats[:_MAX_FORMATS]) + (", …" if len(formats) > _MAX_FORMATS else "")
        raise _unknown_fields(rows, f"none of the row formats known for {task} ({listed})")
    match, others = matches[0], [other for other in matches[1:] if not matches[0].covers(other, rows.fields)]
    template = match.known.template
    if match.known.kind == "alpaca":
        template = with_optional_lines(template or "", _optional_fields(rows))
    template_note = _template_note(template) if task in ("causal_lm", "seq2seq_lm") else ""
    notes = [f"read as {match.known.title} ({match.known.fields(match.target)}){template_note}"]
    titles = dict.fromkeys(other.known.title for other in others)
    notes += [f"could be read as {title}, too; give a template and a target for that" for title in titles]
    if match.known.kind == "completion" and are_messages(rows.rows[0].get(match.target)):
        return RowFormat("chat", None, match.target), [f"read as conversations ({match.known.fields(match.target)})"]
    if match.target == "chosen":
        notes.append("'rejected' is not used: the chosen answers are learned, and no preferences (DPO)")
    return RowFormat(_kind(rows, match), template, match.target, pair=match.known.pair), notes


def _unknown_fields(rows: Rows, formats: str) -> DataError:
    if not rows.fields:
        return DataError(f"{rows.name}: the rows have no fields")
    named = [f"--format {name}" for name in PRESETS if fits_preset(name, rows)]
    advice = " or ".join([*(f"give {format_}" for format_ in named), f"give a template and a target{_advice(rows)}"])
    return DataError(f"{rows.name}: the rows have {quoted(rows.fields)}, which is {formats}; {advice}")


def _conversations(rows: Rows) -> str | None:
    """Return the name of a field that holds conversations."""
    return next((name for name in rows.fields if are_messages(rows.rows[0].get(name))), None)


def _check_no_preferences(rows: Rows) -> None:
    """Refuse pairs of a better and a worse answer whose prompt is not a text of its own."""
    if not {"chosen", "rejected"} <= set(rows.fields) or "messages" in rows.fields:
        return
    has_prompt = any(name in rows.fields for name in ("prompt", "instruction", "question"))
    if not has_prompt or not isinstance(rows.rows[0].get("chosen"), str):
        advice = (
            "give --target chosen"
            if are_messages(rows.rows[0].get("chosen"))
            else "write them as 'messages', or as 'prompt' and 'completion'"
        )
        raise DataError(
            f"{rows.name}: the rows hold preferences ('chosen' and 'rejected'), and preference training (DPO) is not "
            f"supported; to learn the chosen answers, {advice}"
        )


def _optional_fields(rows: Rows) -> set[str]:
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
    words = next((match.known.inputs[0] for match in _matches(rows, "token_classification", target)), None)
    if words is None:
        raise DataError(f"{rows.name}: the words to tag must be in 'tokens'; the rows have {quoted(rows.fields)}")
    return RowFormat("tags", f"{{{words}}}", target), [f"read as words and tags ({words} + {target})"]


def _custom_format(rows: Rows, template: str | None, target: str | None, task: TaskName) -> tuple[RowFormat, list[str]]:
    """Return the format of rows for which the user gave a template, a target or both."""
    notes, pair = [], None
    if template is None and task == "causal_lm" and are_messages(rows.rows[0].get(str(target))):
        return RowFormat("chat", None, str(target)), [f"read as chat messages ({target})"]
    if template is None:
        template, pair = _usual_template(rows, str(target), task)
        notes.append(f"no template given{_template_note(template)}" + (f" with the pair {pair!r}" if pair else ""))
    parsed = Template(template)
    parsed.check(rows.fields)
    for name in parsed.optional:
        if name not in rows.fields and (close := difflib.get_close_matches(name, rows.fields, n=1)):
            raise DataError(
                f"template {template!r}: no row has the optional field {name!r}; the rows have {close[0]!r}"
            )
    notes += [_optional_note(rows, name) for name in parsed.optional]
    if target is None:
        target = _guess_target(rows, parsed)
        notes.append(f"no target given: {target!r} is learned")
    if target in parsed.names:
        raise DataError(f"template {template!r} shows the field {target!r}, which is the target to learn; take it out")
    kind = "label" if task == "sequence_classification" or has_labels(rows, target) else "completion"
    use = "its values are compared as labels" if kind == "label" else "its values are free text"
    return RowFormat(kind, template, target, pair=pair), [*notes, f"target {target!r}: {use}"]


def _optional_note(rows: Rows, name: str) -> str:
    """Return a note on the number of rows that have a text for an optional part of the template."""
    count = sum(not is_missing(row.get(name)) and row[name] != [] for row in rows.rows)
    return f"template: {counted(count, 'row')} of {len(rows)} have the optional {name!r}"


def _usual_template(rows: Rows, target: str, task: TaskName) -> tuple[str, str | None]:
    """Return the template, and the field of a second text, for a target that the user has named.

    They are those of the known format with a label whose inputs the rows have, or those of the only text field.
    """
    matches = [match.known for match in _matches(rows, task, target) if match.known.kind == "label"]
    if matches:
        return matches[0].template or "", matches[0].pair
    inputs = input_fields(rows, target)
    if len(inputs) == 1:
        return f"{{{inputs[0]}}}" + ("" if task == "sequence_classification" else "\nLabel:"), None
    others = inputs or [name for name in rows.fields if name != target] or ["text"]
    option = template_option("\n".join(f"{{{name}}}" for name in (inputs or others[:1])) + "\nAnswer:")
    raise DataError(f"{rows.name}: target {target!r} needs a template for the prompt, such as {option}")


def _guess_target(rows: Rows, template: Template) -> str:
    """Return the field to learn: the only field that the template does not use, or one with a usual name."""
    others = [name for name in rows.fields if name not in template.names]
    by_lowercase = {name.lower(): name for name in reversed(others)}
    named = next((by_lowercase[name] for name in _TARGET_NAMES if name in by_lowercase), None)
    if named is not None:
        return named
    candidates = [name for name in others if not is_identifier(name)]
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(
        f"{rows.name}: which field is to be learned? Give a target; besides the template's there are "
        f"{quoted(candidates)}"
    )


def _notes_on_unused(rows: Rows, row_format: RowFormat) -> list[str]:
    """Return a note on the fields that are not used, with a template for those that look like texts to read."""
    used = {*row_format.input_fields, row_format.target, row_format.pair}
    if row_format.kind == "chat":
        used |= {*CONVERSATION_FIELDS, *(["prompt"] if has_opening(rows.rows[0], row_format.target) else [])}
    unused = [name for name in rows.fields if name not in used and name != mark_field(rows, row_format)]
    if not unused:
        return []
    note = f"fields not used: {quoted(unused)}"
    named = next((name for name in unused if name in (f"{row_format.target}_text", f"{row_format.target}_name")), None)
    if row_format.kind == "label" and named is not None:
        note += f"; to learn {named!r} in place of {row_format.target!r}: --target {shlex.quote(named)}"
    inputs = [name for name in input_fields(rows, row_format.target) if name in unused]
    if inputs and row_format.kind in ("completion", "label", "alpaca"):
        second = f"\n{{{row_format.pair}}}" if row_format.pair else ""
        template = "".join(f"{{{name}}}\n" for name in inputs) + str(row_format.template) + second
        note += f"; to read {'it' if len(inputs) == 1 else 'them'}: {template_option(template, row_format.target)}"
    return [note]


def _advice(rows: Rows) -> str:
    """Return a template and a target as they must be typed, if the rows have texts to read and a target."""
    if (conversations := _conversations(rows)) is not None:
        return f", such as --target {shlex.quote(conversations)}"
    names = {name.lower(): name for name in rows.fields}
    target = next((names[name] for name in (*_TARGET_NAMES, "score", "category") if name in names), None)
    inputs = input_fields(rows, target)
    others = [name for name in rows.fields if name not in inputs and not is_identifier(name)]
    if target is None and len(others) == 1:
        target = others[0]
    elif target is None and len(inputs) > 1:
        target = inputs.pop()
    if target is None or not inputs:
        return ""
    template = "".join(f"{{{name}}}\n" for name in inputs) + "Answer:"
    return f", such as {template_option(template, target)}"


def _template_note(template: str | None) -> str:
    return "" if template is None else f", the prompt as {template!r}"
