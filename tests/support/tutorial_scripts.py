"""Runs a script of a tutorial with PEFT, and with peftly after its imports are changed."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import peft
import pytest
import torch
from tutorial_variants import VARIANTS, with_config

import peftly.peft

SCRIPTS = Path(__file__).parents[1] / "tutorials" / "scripts"
TOOLS = {"peft": peft, "peftly": peftly.peft}


def script(name: str) -> str:
    """Return the source of a script; `script:variant` names one with another configuration."""
    file, _, variant = name.partition(":")
    source = (SCRIPTS / f"{file}.py").read_text(encoding="utf-8")
    return with_config(source, VARIANTS[file][variant]) if variant else source


def changed_import(source: str) -> tuple[str, int]:
    """Return the source of a script with peftly's import instead of PEFT's, and the number of changed lines."""
    return re.subn(r"^from peft import", "from peftly.peft import", source, flags=re.MULTILINE)


@dataclass
class ScriptRun:
    """A script that ran to its end."""

    folder: Path
    variables: dict
    printed: str
    initial: list[list[torch.Tensor]] = field(default_factory=list)
    """Trainable parameters of each adapter as `get_peft_model` returned it."""

    def counts(self) -> list[str]:
        return [line for line in self.printed.splitlines() if line.startswith("trainable params")]


def run_script(
    source: str, tool: str, folder: Path, *, start: list[list[torch.Tensor]] | None = None, seed: int | None = 0
) -> ScriptRun:
    """Run a script in `folder` and return its variables and what it printed.

    Args:
        source: the script, with the imports of PEFT.
        tool: "peft" or "peftly".
        folder: working directory of the script.
        start: trainable parameters which replace those of each call of `get_peft_model`.
        seed: seed of torch before the script and after each call of `get_peft_model`: the two tools draw different
            numbers of random numbers. None leaves the seeds to the script.
    """
    if tool == "peftly":
        source, changed = changed_import(source)
        assert changed
    printed = io.StringIO()
    run = ScriptRun(folder, {"__name__": "__main__"}, "")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        module = TOOLS[tool]
        patch.setattr(module, "get_peft_model", _recording(module.get_peft_model, run.initial, iter(start or ()), seed))
        if seed is not None:
            torch.manual_seed(seed)
        exec(compile(source, "<tutorial>", "exec"), run.variables)
    run.printed = printed.getvalue()
    return run


def _copy(values: list[torch.Tensor], parameters: list[torch.Tensor]) -> None:
    """Copy values to parameters of the same shapes, in the order of each shape: heads stand elsewhere in PEFT."""
    left = list(values)
    for parameter in parameters:
        found = next(value for value in left if value.squeeze().shape == parameter.squeeze().shape)
        left = [value for value in left if value is not found]
        parameter.data.copy_(found.reshape(parameter.shape))
    assert not left


def _recording(
    get_peft_model: Callable, initial: list[list[torch.Tensor]], start: Iterator[list[torch.Tensor]], seed: int | None
) -> Callable:
    def wrapped(*args, **kwargs):
        model = get_peft_model(*args, **kwargs)
        parameters = [value for value in model.parameters() if value.requires_grad]
        _copy(next(start, parameters), parameters)
        initial.append([value.detach().clone() for value in parameters])
        if seed is not None:
            torch.manual_seed(seed)
        return model

    return wrapped
