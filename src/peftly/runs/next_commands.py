"""Commands to try after a training, as they can be typed in this shell."""

import shlex
from pathlib import Path

from peftly.data import RowFormat, Template
from peftly.evaluation import has_answers
from peftly.utils import program

__all__ = ["next_commands"]


def next_commands(folder: Path, row_format: RowFormat, *, has_held_out: bool, is_ensemble: bool = False) -> list[str]:
    """Return commands that use the adapter of a run. Each of them works as it is.

    Args:
        folder: run folder, or folder of an ensemble.
        row_format: format of the rows.
        has_held_out: whether the run has test or validation examples.
        is_ensemble: whether the folder holds the members of an ensemble, which only vote on labels.
    """
    run = shlex.quote(str(folder))
    commands = []
    if has_held_out:
        commands.append(f"evaluate {run}" + (" --generate 32" if has_answers(row_format) else ""))
    if row_format.kind == "chat":
        commands.append(f"chat {run}")
    if not is_ensemble:
        commands += [f"generate {run} {_text_options(row_format)}", f"inspect {run}"]
    return [f"{program()} {command}" for command in commands]


def _text_options(row_format: RowFormat) -> str:
    """Return the options of `peftly generate` for a text in a row format."""
    fields = list(dict.fromkeys(Template(row_format.template or "").fields))
    if len(fields) > 1 and row_format.kind != "alpaca":
        options = " ".join(f"--field {shlex.quote(f'{field}=your text')}" for field in fields)
    else:
        options = '--text "your text"'
    return options if row_format.pair is None else f'{options} --pair "your second text"'
