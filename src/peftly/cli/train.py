"""`peftly train`."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli._console import console, quiet
from peftly.cli._options import (
    BaseOption,
    BatchSize,
    ConfigFile,
    DataFile,
    MaxLength,
    Overrides,
    Target,
    TaskOption,
    Template,
    TestFile,
    ValidationFile,
)
from peftly.utils import program

if TYPE_CHECKING:
    from rich.console import Console

    from peftly.runs import AnyConfig, RunConfig, RunResult

__all__ = ["train"]


def train(
    config: ConfigFile = None,
    base: BaseOption = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="Keep the base's linear layers in nf4, fp4 or int8.")
    ] = None,
    task: TaskOption = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    max_length: MaxLength = None,
    method: Annotated[str | None, typer.Option("--method", help="What is trained; see peftly methods.")] = None,
    ensemble: Annotated[
        int | None, typer.Option("--ensemble", help="Train this many such adapters at once, and let them vote.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="The folder that the run writes.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="How often every example is seen.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="The highest one; without: the method's own.")
    ] = None,
    batch_size: BatchSize = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides what is drawn at random.")] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the out folder holds.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the run in this folder, which was stopped.")
    ] = None,
) -> None:
    """Train an adapter on your data, from a YAML file, from options, or from both (an option wins)."""
    flags = {
        "base": base,
        "quantization": quantization,
        "task": task,
        "data": data,
        "validation": validation,
        "test": test,
        "template": template,
        "target": target,
        "max_length": max_length,
        "method": method,
        "ensemble": ensemble,
        "out": out,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
    }
    from peftly.runs import check_out, load_config, one_run

    if resume is not None:
        _refuse_beside_resume(config, overrides or None, overwrite or None, *flags.values())
        check_out(resume, resume=True)
        config, flags = str(resume / "config.yaml"), {"out": str(resume)}
    resolved = load_config(config, overrides or (), flags, stored=resume is not None)
    goes_on = resume is not None
    check_out(Path(resolved.out), overwrite=overwrite, resume=goes_on)
    quiet()
    if resolved.parts():
        _train_together(resolved, overwrite=overwrite, resume=goes_on)
    else:
        _train(one_run(resolved), overwrite=overwrite, resume=goes_on)


def _refuse_beside_resume(*given: object) -> None:
    from peftly.errors import ConfigError

    if any(value is not None for value in given):
        raise ConfigError(
            "--resume takes no other options: a run goes on with the settings that it was begun with, which are in its "
            "config.yaml; train anew for others"
        )


def _train(config: "RunConfig", *, overwrite: bool, resume: bool) -> None:
    from peftly.runs import run
    from peftly.training import ProgressBar

    screen = console()
    with ProgressBar(screen) as bar:
        result = run(
            config, overwrite=overwrite, resume=resume, say=partial(screen.print, markup=False), callbacks=[bar]
        )
    _print_summary(screen, result)


def _train_together(config: "AnyConfig", *, overwrite: bool, resume: bool) -> None:
    from peftly.report import comparison_table
    from peftly.runs import run_together
    from peftly.training import ProgressBar

    screen = console()
    with ProgressBar(screen, lines=max(4, 20 // len(config.parts()))) as bar:
        bars = {name: [bar.beside(name)] for name in config.parts()}
        result = run_together(
            config, overwrite=overwrite, resume=resume, say=partial(screen.print, markup=False), callbacks=bars
        )
    screen.print()
    screen.print(comparison_table(result.rows))
    folder = result.out if result.ensemble else next(iter(result.runs.values())).out
    screen.print(f"report: {result.report}\n\nNext:\n  {program()} evaluate {shlex.quote(str(folder))}", markup=False)


def _print_summary(screen: "Console", result: "RunResult") -> None:
    from peftly.utils import bytes_text, count_text, score_rows, seconds_text

    screen.print()
    if result.evaluation is not None:
        scores = ", ".join(f"{name} {text}" for name, text in score_rows(vars(result.evaluation)))
        screen.print(f"{result.split}: {scores}")
    screen.print(
        f"trained {count_text(result.parameters)} parameters in {seconds_text(result.training.seconds)}; "
        f"the adapter takes {bytes_text(result.size)}"
    )
    folder = shlex.quote(str(result.out))
    screen.print(f"report: {result.report}\n\nNext:", markup=False)
    for command in (f"evaluate {folder}", f'generate {folder} --text "…"', f"inspect {folder}"):
        screen.print(f"  {program()} {command}", markup=False)
