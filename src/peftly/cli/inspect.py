"""`peftly inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli.console import console, silence_libraries
from peftly.cli.options import (
    BaseOption,
    ChatTemplate,
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
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Run folder, or YAML file. Options override it.")
    ] = None,
    base: BaseOption = None,
    task: TaskOption = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    chat_template: ChatTemplate = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
    job: Annotated[str | None, typer.Option("--job", help="Name of the job, for a configuration with jobs.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Number of training examples to show.")] = 3,
) -> None:
    """Show the tokens of some training examples, which of them are trained, and a report on the data."""
    flags = {
        "base": base,
        "task": task,
        "data": data or None,
        "validation": validation or None,
        "test": test or None,
        "template": template,
        "target": target,
        "chat_template": chat_template,
        "max_length": max_length,
    }
    config = _read_config(source, overrides or [], flags, job)
    silence_libraries()
    from rich.text import Text

    from peftly.cli.tokens import example_text
    from peftly.data import read_data
    from peftly.models import choose_task, load_tokenizer, resolve_base
    from peftly.runs import changed_rows_line

    raw = read_data(config.data)
    base_spec = resolve_base(config.base)
    chosen, reason = choose_task(config.task, base_spec.config, raw.target_kind(), config.base)
    formatted = raw.format(chosen)
    tokenizer = load_tokenizer(base_spec)
    loaded = formatted.encode(tokenizer)
    screen = console()
    screen.print(f"task: {chosen} ({reason})", end="\n\n")
    brackets = screen.color_system is None or screen.no_color
    for number, encoded in enumerate(loaded.train.encoded[:examples], start=1):
        cut = f", {encoded.num_truncated} cut" if encoded.num_truncated else ""
        counts = f"{encoded.num_tokens} tokens, {encoded.num_targets} {_LEARNED.get(chosen, 'trained')}"
        screen.print(f"example {number}: {counts}{cut}", style="bold")
        screen.print(example_text(encoded, tokenizer, loaded.row_format.labels, brackets=brackets), end="\n\n")
    legend = Text.assemble(("trained", "green"), ", ", ("not trained", "dim"))
    screen.print("⟦trained⟧, not trained" if brackets else legend, end="\n\n")
    for line in loaded.report.lines():
        screen.print(line)
    if source is not None and (change := changed_rows_line(source, loaded)):
        screen.print(change)


def _read_config(source: str | None, overrides: list[str], flags: Mapping[str, object], job: str | None) -> "RunConfig":
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
