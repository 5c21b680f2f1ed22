"""`peftly train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from peftly.runs import AnyConfig, RunConfig, RunResult

__all__ = ["train"]


def train(
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
    out: Annotated[str | None, typer.Option("--out", help="Output folder of the run.")] = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    early_stopping_patience: Patience = None,
    seed: Seed = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Folder of an unfinished run to continue. Only --base can be given with it."),
    ] = None,
) -> None:
    """Train an adapter on your data, with settings from a YAML file, from options, or from both."""
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
        "out": out,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "early_stopping_patience": early_stopping_patience,
        "seed": seed,
    }
    import_libraries()
    from peftly.runs import check_resumable, check_run_folder, load_config, one_run
    from peftly.training import join_processes, leave_processes, on_main_process

    def resolved_config() -> "AnyConfig":
        if resume is None:
            resolved = load_config(config, overrides or (), flags)
            check_run_folder(Path(resolved.out), overwrite=overwrite)
            return resolved
        others = (value for flag, value in flags.items() if flag != "base")
        _check_alone(config, overrides or None, overwrite or None, *others)
        check_resumable(resume)
        return load_config(resume / "config.yaml", (), {"out": str(resume), "base": base}, stored=True)

    join_processes()
    resolved = on_main_process(resolved_config)
    silence_libraries()
    if resolved.parts():
        _train_together(resolved, overwrite=overwrite, resume=resume is not None)
    else:
        _train(one_run(resolved), overwrite=overwrite, resume=resume is not None)
    leave_processes()


def _check_alone(*others: object) -> None:
    """Refuse other options beside `--resume`."""
    if any(value is not None for value in others):
        raise ConfigError(
            "--resume takes no other options than --base, for a base that has moved: a run continues with the settings "
            "in its config.yaml; for other settings train again"
        )


def _train(config: "RunConfig", *, overwrite: bool, resume: bool) -> None:
    from peftly.runs import run
    from peftly.training import ProgressBar

    screen = console(is_progress=True)
    with ProgressBar(screen) as bar:
        result = run(
            config, overwrite=overwrite, resume=resume, log=screen.print, callbacks=[bar], estimates_memory=True
        )
    _print_summary(screen, result)


def _train_together(config: "AnyConfig", *, overwrite: bool, resume: bool) -> None:
    from peftly.cli.next_commands import next_commands
    from peftly.report import comparison_note, comparison_table, epoch_table
    from peftly.runs import run_together
    from peftly.training import ProgressBar

    screen = console(is_progress=True)
    with ProgressBar(screen, lines=max(4, 20 // len(config.parts()))) as bar:
        bars = {name: [bar.add_bar(name)] for name in config.parts()}
        result = run_together(config, overwrite=overwrite, resume=resume, log=screen.print, callbacks=bars)
    screen.print()
    if (table := epoch_table({name: run.out for name, run in result.runs.items()})) is not None:
        screen.print(table)
    screen.print(comparison_table(result.rows))
    if note := comparison_note(result.rows):
        screen.print(note)
    first = next(iter(result.runs.values()), None)  # none if all runs were finished before a resume
    vote: list[str] = []
    if first is not None and result.ensemble is not None:
        vote = next_commands(result.out, first.row_format, has_held_out=True, is_ensemble=True)
    _print_next(screen, result.report, [*vote, *(_commands_of(first) if first is not None else ())])


def _print_summary(screen: "Console", result: "RunResult") -> None:
    from peftly.report import epoch_table
    from peftly.utils import bytes_text, count_text, score_rows, score_text, seconds_text

    training = result.training
    screen.print()
    if (table := epoch_table({"": result.out})) is not None:
        screen.print(table)
    if training.best is not None:
        best = f"best: step {training.best_step}, epoch {training.best.epoch:.3g}"
        reason = f"; stopped early after step {training.steps} of {training.planned_steps}: {training.stop_reason}"
        screen.print(best + (reason if training.stopped_early else f", of {training.steps} steps"))
    if result.evaluation is not None:
        scores = ", ".join(f"{name} {text}" for name, text in score_rows(vars(result.evaluation)))
        screen.print(f"{result.split}: {scores}")
    for name, baseline in result.comparable_baselines().items():
        screen.print(f"{name}: {', '.join(f'{score} {text}' for score, text in score_rows(baseline))}")
    if (loss := _loss_above_base(result)) is not None:
        screen.print(
            f"warning: the loss of the untouched base, {score_text(loss)}, is lower: the adapter makes it worse; lower "
            "--learning-rate, or train for more steps"
        )
    estimated = f" (estimated: {bytes_text(result.estimate.steps_bytes)})" if result.estimate is not None else ""
    screen.print(
        f"trained {count_text(result.parameters)} parameters in {seconds_text(training.seconds)}, peak memory "
        f"{bytes_text(training.peak_memory_bytes)}{estimated}; the adapter takes {bytes_text(result.size)}"
    )
    _print_next(screen, result.report, _commands_of(result))


def _loss_above_base(result: "RunResult") -> float | None:
    """Return the loss of the untouched base if that of the adapter is higher; else None."""
    base = result.comparable_baselines().get("untouched base", {}).get("loss")
    if base is None or result.evaluation is None or not result.evaluation.loss > base:
        return None
    return float(base)


def _commands_of(result: "RunResult") -> list[str]:
    from peftly.cli.next_commands import next_commands

    return next_commands(result.out, result.row_format, has_held_out=result.evaluation is not None)


def _print_next(screen: "Console", report: Path, commands: list[str]) -> None:
    screen.print(f"report: {report}\n\nNext:")
    for command in commands:
        screen.print(f"  {command}", soft_wrap=True)  # without line breaks, so that it can be copied
