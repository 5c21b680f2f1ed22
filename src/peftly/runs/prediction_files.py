"""Predictions of a killed process, and the files that predictions become.

Answers are appended to `OUT.unfinished/answers.jsonl` batch by batch, so that a killed process has lost one batch at
most. `OUT.unfinished/started.json` holds what they depend on: rows, adapters and settings.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftly.data import Rows, quoted
from peftly.errors import ConfigError
from peftly.inference import Answer
from peftly.runs.row_files import check_row_file, write_rows
from peftly.utils import (
    append,
    delete_file,
    delete_folder,
    folder_lock,
    json_values,
    make_folder,
    nearest_existing_parent,
    truncate,
    write_json,
)

__all__ = [
    "FORMS",
    "Form",
    "Journal",
    "check_fields",
    "check_form",
    "id_field",
    "predicted_rows",
    "row_with_answer",
    "write_predictions",
]

Form = str
"""Form of the rows of a file of predictions; a key of `FORMS`."""

_PREDICTION, _PROBABILITIES = "prediction", "probabilities"
_PROBABILITY_OF = "probability_"
"""Beginning of the name of a column with the probability of a label."""

_TABLES = (".csv", ".tsv")


class Journal:
    """Answers of an unfinished prediction on the disk.

    Args:
        out: file that the predictions will be written to.
        facts: everything that the answers depend on, by its name for messages.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self._out, self._facts = out, json_values(dict(facts))
        self._folder = out.with_name(f"{out.name}.unfinished")
        self._started, self._answers = self._folder / "started.json", self._folder / "answers.jsonl"

    @contextmanager
    def open(self, *, overwrite: bool = False) -> Iterator[dict[int, Answer]]:
        """Hold the journal, and yield the answers that it has by the index of their row.

        Args:
            overwrite: whether to drop the answers of an earlier process, and to replace `out`.

        Raises:
            ConfigError: `out` exists, the answers in the journal depend on something else, or another process is
                writing them.
        """
        self.check(overwrite=overwrite)
        make_folder(self._folder)
        with folder_lock(self._folder):
            if overwrite:
                delete_file(self._started)
                delete_file(self._answers)
            before = self._read_started()
            if before is None:
                delete_file(self._answers)
                write_json(self._started, self._facts)
            else:
                self._check_same(before)
            yield self._read_answers()

    def check(self, *, overwrite: bool = False) -> None:
        """Check that the predictions can be written, before a model is opened.

        Raises:
            ConfigError: as for `open`.
        """
        before = None if overwrite else self._read_started()
        if before is not None:
            self._check_same(before)
        elif self._out.exists() and not overwrite:
            raise ConfigError(f"{self._out} exists; give --overwrite to replace it, or another --out")

    def add(self, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        """Append the answers of a batch."""
        line = json.dumps({"rows": list(indices), "answers": answers}, ensure_ascii=False)
        append(self._answers, f"{line}\n".encode())

    def remove(self) -> None:
        """Delete the journal, after `out` was written."""
        delete_folder(self._folder)

    def _read_started(self) -> dict[str, Any] | None:
        """Return the facts of the earlier process; None if there was none, or if it was killed before it wrote them."""
        try:
            content = json.loads(self._started.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ConfigError(f"{self._started} is damaged; give --overwrite to begin again")
        return content

    def _check_same(self, before: Mapping[str, Any]) -> None:
        changed = [name for name in {**self._facts, **before} if before.get(name) != self._facts.get(name)]
        if changed:
            differences = "; ".join(_difference(name, before.get(name), self._facts.get(name)) for name in changed)
            raise ConfigError(
                f"{self._folder} holds predictions that cannot be continued: {differences}; give --overwrite to begin "
                "again, or another --out"
            )

    def _read_answers(self) -> dict[int, Answer]:
        """Return the answers, without the part of a batch that a kill or a power failure has left at the end."""
        if not self._answers.is_file():
            return {}
        answers: dict[int, Answer] = {}
        size = 0
        with self._answers.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n") or (batch := _parsed(line)) is None:
                    break
                answers.update(batch)
                size += len(line)
        if size < self._answers.stat().st_size:
            truncate(self._answers, size)
        return answers


def _parsed(line: bytes) -> dict[int, Answer] | None:
    try:
        batch = json.loads(line)
        return {index: Answer(*answer) for index, answer in zip(batch["rows"], batch["answers"], strict=True)}
    except (ValueError, KeyError, TypeError):
        return None


def _difference(name: str, before: Any, now: Any) -> str:
    shown = [value for value in (before, now) if isinstance(value, str) and len(value) > 60]
    return f"{name} changed" if shown else f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return "the default" if value is None else json.dumps(value, ensure_ascii=False)


def check_fields(rows: Rows) -> None:
    """Check that no row has a field of the names that predictions get.

    Raises:
        ConfigError: a row has one, as in the result of another prediction.
    """
    taken = [name for name in rows.fields if name in (_PREDICTION, _PROBABILITIES) or name.startswith(_PROBABILITY_OF)]
    if taken:
        raise ConfigError(
            f"{rows.name} has {quoted(taken)}, the names that predictions get; rename the field, or leave it out"
        )


def row_with_answer(row: Mapping[str, Any], answer: Answer, *, has_probabilities: bool | None = None) -> dict[str, Any]:
    """Return a row with its own fields, `prediction`, and `probabilities` if the model gives some.

    Args:
        row: fields and values.
        answer: answer for the row.
        has_probabilities: whether the rows have the field `probabilities`; None: if this answer has some.
    """
    added = {_PREDICTION: answer.prediction}
    if has_probabilities or answer.probabilities is not None:
        added[_PROBABILITIES] = answer.probabilities
    return {**row, **added}


def predicted_rows(rows: Rows, answers: Mapping[int, Answer]) -> Iterator[dict[str, Any]]:
    """Yield each row with its answer; either all of them have the field `probabilities`, or none."""
    has_probabilities = any(answer.probabilities is not None for answer in answers.values())
    for index, row in enumerate(rows.rows):
        yield row_with_answer(row, answers[index], has_probabilities=has_probabilities)


def _rows_form(rows: Rows, answers: Mapping[int, Answer], is_table: bool) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the fields and rows with their own fields; a table has a column for the probability of each label."""
    labels = next((list(answer.probabilities) for answer in answers.values() if answer.probabilities), None)
    written = predicted_rows(rows, answers)
    if labels is None:
        return [*rows.fields, _PREDICTION], written
    if not is_table:
        return [*rows.fields, _PREDICTION, _PROBABILITIES], written
    columns = {label: f"{_PROBABILITY_OF}{label}" for label in labels}
    flat = (
        {**row, **{columns[label]: value for label, value in (row[_PROBABILITIES] or {}).items()}} for row in written
    )
    return [*rows.fields, _PREDICTION, *columns.values()], flat


def _raft_form(
    rows: Rows, answers: Mapping[int, Answer], _is_table: bool
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the columns of a submission to the RAFT benchmark: the ID of each row and the name of its label."""
    name = id_field(rows)
    ids = (index if name is None else row.get(name) for index, row in enumerate(rows.rows))
    return ["ID", "Label"], ({"ID": number, "Label": answers[index].prediction} for index, number in enumerate(ids))


def id_field(rows: Rows) -> str | None:
    """Return the field with the numbers of the rows; None: there is none."""
    return next((name for name in rows.fields if name.lower() == "id"), None)


FORMS: dict[Form, Callable[[Rows, Mapping[int, Answer], bool], tuple[list[str], Iterator[dict[str, Any]]]]] = {
    "rows": _rows_form,
    "raft": _raft_form,
}
"""Fields and rows of a file by the name of its form."""


def check_form(out: Path, form: Form) -> None:
    """Check the name of a file of predictions, and of its form.

    Raises:
        ConfigError: the form is not known, or is for CSV files.
        DataError: the ending of the name is not known; see `check_row_file`.
    """
    check_row_file(out)
    if form not in FORMS:
        raise ConfigError(f"form {form!r} is not known; known are {quoted(FORMS)}")
    if form == "raft" and out.suffix.lower() != ".csv":
        raise ConfigError(f"a submission to RAFT is a CSV file; give --out predictions.csv, and not {out}")
    if not os.access(nearest_existing_parent(out), os.W_OK):
        raise ConfigError(f"{out}: the folder is not writable; give another --out")


def write_predictions(out: Path, rows: Rows, answers: Mapping[int, Answer], form: Form) -> None:
    """Write the file of predictions, complete or not at all.

    Args:
        out: file to write.
        rows: the rows.
        answers: answer for each row, by its index.
        form: form of the file.
    """
    fields, written = FORMS[form](rows, answers, out.suffix.lower() in _TABLES)
    write_rows(out, written, fields)
