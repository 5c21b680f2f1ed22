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
    Format,
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
    from rich.console import Console

    from peftly.data import DataReport
    from peftly.report import ShownExample
    from peftly.runs import RunConfig

__all__ = ["inspect"]

_EXAMPLES = 3
_PAGE_EXAMPLES = 10
_BAR = 40


def inspect(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="Data (file, folder or Hub id), run folder, or YAML file with a configuration. Options override it.",
        ),
    ] = None,
    base: BaseOption = None,
    task: TaskOption = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    row_format: Format = None,
    chat_template: ChatTemplate = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
    job: Annotated[str | None, typer.Option("--job", help="Name of the job, for a configuration with jobs.")] = None,
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, help="Number of examples to show. Default: 3, and 10 on the page."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="KIND", help="Show only examples with this kind of finding.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.html", help="Write the findings and examples as a page, too.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 if a problem is found.")] = False,
) -> None:
    """Show the tokens of some examples and which of them are trained, check the data, and report on them."""
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--page {page}: the name of the page must end in .html")
    source, data = _as_data(source, data or [])
    flags = {
        "base": base,
        "task": task,
        "data": data or None,
        "validation": validation or None,
        "test": test or None,
        "template": template,
        "target": target,
        "format": row_format,
        "chat_template": chat_template,
        "max_length": max_length,
    }
    config = _read_config(source, overrides or [], flags, job)
    silence_libraries()
    from peftly.cli.audit import Audit
    from peftly.report import write_audit
    from peftly.runs import changed_rows_line

    num_samples = examples or _EXAMPLES
    audit = Audit.of(config, max_samples=num_samples)
    report, found = audit.data.report, audit.found()
    shown = audit.first(num_samples) if only is None else _of_kind(only, found)
    if page is not None:  # before the output, which may be closed early, as by `head`
        write_audit(
            page,
            report,
            audit.first(examples or _PAGE_EXAMPLES),
            found,
            title=", ".join(Path(name).name for name in _names(config.data.train)),
            subtitle=f"{audit.formatted.task} on {config.base}, max_length {audit.formatted.max_length}",
        )
    screen = console()
    screen.print(f"task: {audit.formatted.task} ({audit.reason})", end="\n\n")
    _print_examples(screen, shown)
    _print_report(screen, report)
    if source is not None and (change := changed_rows_line(source, audit.data)):
        screen.print(change)
    if page is not None:
        screen.print(f"page: {page}")
    if strict and report.has_problems:
        raise typer.Exit(1)


def _as_data(source: str | None, data: list[str]) -> tuple[str | None, list[str]]:
    """Return the configuration or run to read, and the data; SOURCE can be either."""
    if source is None or Path(source).suffix.lower() in (".yaml", ".yml"):
        return source, data
    folder = Path(source)
    is_data_folder = any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    if folder.is_dir() and not is_data_folder:
        return source, data
    if data:
        raise ConfigError(f"data are given twice: {source}, and --data {data[0]}; give one of them")
    return None, [source]


def _names(source: str | tuple[str, ...]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else source


def _of_kind(kind: str, found: "Mapping[tuple[str, str], list[ShownExample]]") -> "list[ShownExample]":
    from peftly.data import FINDING_KINDS

    if kind not in FINDING_KINDS:
        kinds = ", ".join(dict.fromkeys(its_kind for _, its_kind in found)) or "nothing"
        raise ConfigError(f"--only {kind}: there is no such kind of finding; the checks found {kinds}")
    return [example for (_, its_kind), examples in found.items() if its_kind == kind for example in examples]


def _print_examples(screen: "Console", shown: "list[ShownExample]") -> None:
    from rich.text import Text

    from peftly.cli.tokens import units_text

    brackets = screen.color_system is None or screen.no_color
    for example in shown:
        screen.print(example.title, style="bold")
        if example.units:
            screen.print(units_text(example.units, example.answer, brackets=brackets))
        screen.print()
    if not shown:
        screen.print("no example has this kind of finding", end="\n\n")
        return
    legend = Text.assemble(("trained", "green"), ", ", ("not trained", "dim"))
    has_groups = any(len(unit.ids) > 1 for example in shown for unit in (*example.units, *example.answer))
    groups = "; 字(2): a character of two tokens" if has_groups else ""
    screen.print(("⟦trained⟧, not trained" if brackets else legend) + groups, end="\n\n")


def _print_report(screen: "Console", report: "DataReport") -> None:
    from peftly.report import length_rows

    for line in report.counts():
        screen.print(line)
    for name, split in report.splits.items():
        if split.lengths is None:
            continue
        screen.print(f"\n{name}: {split.lengths.line()}")
        for bin_name, count, share, is_cut in length_rows(split.lengths) if name == "train" else ():
            bar = "█" * round(_BAR * share) or ("▏" if count else "")
            screen.print(f"  {bin_name:>15} {bar}{' ' if bar else ''}{count:,}{' truncated' if is_cut else ''}")
    screen.print()
    for name, finding in report.findings:
        is_problem = finding.is_problem
        screen.print(f"{'problem' if is_problem else 'note'} {finding.kind}: {name}: {finding.text}")
        for sample in finding.samples:
            screen.print(f"  {sample}")
    if not report.findings:
        screen.print("the checks found nothing")
    for line in report.notes:
        screen.print(line)


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
