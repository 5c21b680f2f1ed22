"""`peftly inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli._console import console, quiet
from peftly.cli._options import (
    BaseOption,
    DataFile,
    MaxLength,
    Overrides,
    Target,
    TaskOption,
    Template,
    TestFile,
    ValidationFile,
)
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import RunConfig

__all__ = ["inspect"]

_LEARNED = {"sequence_classification": "label", "token_classification": "tagged"}


def inspect(
    source: Annotated[str | None, typer.Argument(help="A run folder or a YAML file; without one, options.")] = None,
    base: BaseOption = None,
    task: TaskOption = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
    job: Annotated[str | None, typer.Option("--job", help="Which one, of a configuration with jobs.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many training examples to show.")] = 3,
) -> None:
    """Show the exact tokens of some training examples: which are trained, and what was cut."""
    flags = {
        "base": base,
        "task": task,
        "data": data,
        "validation": validation,
        "test": test,
        "template": template,
        "target": target,
        "max_length": max_length,
    }
    config = _config(source, overrides or [], flags, job)
    quiet()
    from peftly.cli._tokens import example_text
    from peftly.data import read_data
    from peftly.models import base_config, choose_task, load_base

    raw = read_data(config.data)
    chosen, reason = choose_task(config.task, base_config(config.base), raw.holds(), config.base)
    shaped = raw.shaped(chosen)
    tokenizer = load_base(config.base, dtype=config.dtype, device=config.device).tokenizer
    loaded = shaped.encoded(tokenizer)
    screen = console()
    screen.print(f"task: {chosen} ({reason})", markup=False, end="\n\n")
    marked = screen.color_system is None or screen.no_color
    for place, encoded in enumerate(loaded.train.encoded[:rows], start=1):
        cut = f", {encoded.cut} cut" if encoded.cut else ""
        counts = f"{encoded.num_tokens} tokens, {encoded.num_targets} {_LEARNED.get(chosen, 'trained')}"
        screen.print(f"example {place}: {counts}{cut}", style="bold")
        screen.print(example_text(encoded, tokenizer, loaded.row_format.labels, marked=marked), end="\n\n")
    screen.print("⟦trained⟧, not trained" if marked else "[green]trained[/], [dim]not trained[/]", end="\n\n")
    for line in loaded.report.lines():
        screen.print(line, markup=False)


def _config(source: str | None, overrides: list[str], flags: Mapping[str, object], job: str | None) -> "RunConfig":
    from peftly.runs import JobsConfig, load_config

    is_run = source is not None and Path(source).is_dir()
    if source is not None and is_run:
        if not (Path(source) / "config.yaml").is_file():
            raise ConfigError(f"{source} holds no run: it has no config.yaml")
        source = str(Path(source) / "config.yaml")
    config = load_config(source, overrides, flags, defaults={"method": "lora", "out": "unused"}, stored=is_run)
    if not isinstance(config, JobsConfig):
        return config
    if job not in config.jobs:
        raise ConfigError(f"this configuration has the jobs {', '.join(config.jobs)}; choose one with --job")
    return config.jobs[job]
