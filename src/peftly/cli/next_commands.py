"""Commands to try after a training, as they can be typed in this shell."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.cli.prompts import input_options

if TYPE_CHECKING:
    from peftly.data import RowFormat

__all__ = ["next_commands"]


def next_commands(folder: Path, row_format: "RowFormat", *, has_held_out: bool, is_ensemble: bool = False) -> list[str]:
    """Return commands that use the adapter of a run. Each of them works as it is.

    Args:
        folder: run folder, or folder of an ensemble.
        row_format: format of the rows.
        has_held_out: whether the run has test or validation examples.
        is_ensemble: whether the folder holds the members of an ensemble, which only vote on labels.
    """
    from peftly.evaluation import has_answers
    from peftly.utils import program

    run = shlex.quote(str(folder))
    commands = []
    if has_held_out:
        commands.append(f"evaluate {run}" + (" --generate 32" if has_answers(row_format) else ""))
    if (unlabelled := _data_with_unlabelled_rows(folder)) is not None:
        commands.append(f"predict {run} --data {shlex.quote(unlabelled)} --out predictions.csv")
    if row_format.kind == "chat":
        commands.append(f"chat {run}")
    if not is_ensemble:
        commands += [f"generate {run} {input_options(row_format)}", f"inspect {run}"]
    return [f"{program()} {command}" for command in commands]


def _data_with_unlabelled_rows(folder: Path) -> str | None:
    """Return the data set of a run if its test split has no targets, as that of a benchmark; None: it has no such."""
    from peftly.runs import RunConfig, load_config

    file = folder / "data.json"
    notes = json.loads(file.read_text(encoding="utf-8"))["notes"] if file.is_file() else []
    if not any(note.endswith("so it is no test split") for note in notes):
        return None
    config = load_config(folder / "config.yaml", stored=True)
    train = config.data.train if isinstance(config, RunConfig) else ()
    sources = [train] if isinstance(train, str) else list(train)
    return sources[0] if len(sources) == 1 else None
