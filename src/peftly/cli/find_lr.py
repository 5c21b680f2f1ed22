"""`peftly find-lr`."""

from pathlib import Path
from typing import Annotated

import typer

from peftly.cli.console import console, import_libraries, silence_libraries
from peftly.cli.options import (
    BaseOption,
    BatchSize,
    ChatTemplate,
    ConfigFile,
    DataFile,
    Ensemble,
    Epochs,
    Format,
    Head,
    LearningRate,
    MaxLength,
    MethodOption,
    Overrides,
    Patience,
    QuantizationOption,
    Seed,
    Target,
    TaskOption,
    Template,
    TestFile,
    ValidationFile,
)

__all__ = ["find_lr"]

KIND = "a learning rate test"


def find_lr(
    config: ConfigFile = None,
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    task: TaskOption = None,
    head: Head = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    row_format: Format = None,
    chat_template: ChatTemplate = None,
    max_length: MaxLength = None,
    method: MethodOption = None,
    ensemble: Ensemble = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder for a picture and a table. Default: nothing is written.")
    ] = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    early_stopping_patience: Patience = None,
    seed: Seed = None,
    overrides: Overrides = None,
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="Number of steps; the test ends earlier if the loss diverges.")
    ] = 100,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier test in --out.")] = False,
) -> None:
    """Suggest a learning rate: train some steps with a rising rate. Takes the settings and options of train."""
    flags = {
        "base": base,
        "quantization": quantization,
        "task": task,
        "head": head,
        "data": data or None,
        "validation": validation or None,
        "test": test or None,
        "template": template,
        "target": target,
        "format": row_format,
        "chat_template": chat_template,
        "max_length": max_length,
        "method": method,
        "ensemble": ensemble,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "early_stopping_patience": early_stopping_patience,
        "seed": seed,
    }
    import_libraries()
    from peftly.report import rate_lines, write_rates
    from peftly.runs import find_rate_of_run, load_config
    from peftly.training import ProgressBar
    from peftly.utils import check_output_folder, write_folder

    resolved = load_config(config, overrides or (), flags, {"out": "not-written"})
    if out is not None:
        check_output_folder(Path(out), kind=KIND, overwrite=overwrite)
    silence_libraries()
    screen = console()
    with ProgressBar(screen, lines=10) as bar:
        result = find_rate_of_run(resolved, steps=steps, log=screen.print, callbacks=[bar])
    numbers = (result.rates, result.losses, result.smoothed, result.suggestion)
    screen.print()
    for line in rate_lines(*numbers):
        screen.print(line, soft_wrap=True)
    if out is not None:
        with write_folder(Path(out), kind=KIND) as folder:
            names = write_rates(folder, *numbers)
        screen.print(f"\nwritten: {', '.join(str(Path(out) / name) for name in names)}", soft_wrap=True)
        if len(names) == 1:
            screen.print("for a picture: pip install 'peftly[report]'")
    if result.has_diverged:
        screen.print(f"\nthe loss diverged at {result.rates[-1]:.1e}")
    if result.suggestion is None:
        screen.print("no suggestion: the loss does not fall at any of these rates; try more --steps or a larger batch")
    else:
        screen.print(f"suggestion: --learning-rate {result.suggestion:g}")
