"""Several runs over one base, trained side by side: the members of an ensemble, or jobs with rows of their own.

Each of them has a run folder of its own below the one of them all, as if it had been trained alone; that one holds

config.yaml    what all of it was
results.json   their scores side by side, and those of the ensemble
report.html    the same to look at
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import use_adapters
from peftly.data import Data
from peftly.errors import ConfigError
from peftly.evaluation import Evaluation, Vote, evaluate, evaluate_ensemble
from peftly.models import TASKS, Base, draw_new_parts
from peftly.report import comparison_row, write_comparison
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.config_file import dump_config
from peftly.runs.folder import RESULTS, check_out, drop_leftovers, write_json, write_text
from peftly.runs.held_out import evaluation_split
from peftly.runs.run import (
    RunResult,
    attach_method,
    batches_line,
    open_parts,
    training_in,
    write_run_header,
    write_run_results,
)
from peftly.training import Job, check_trainable, train_together
from peftly.utils import environment

if TYPE_CHECKING:
    from peftly.training import Callback

__all__ = ["TogetherResult", "run_together"]


@dataclass(frozen=True)
class TogetherResult:
    """What came of runs that were trained side by side.

    Attributes:
        out: the folder of all of them.
        runs: what came of each, by name.
        ensemble: the scores of the vote; None if they are no ensemble, or there are no rows to score.
        rows: of the page that sets them side by side, as `comparison_row` makes them.
        report: that page.
    """

    out: Path
    runs: dict[str, RunResult]
    ensemble: Evaluation | None
    rows: list[dict[str, Any]]
    report: Path


@dataclass(frozen=True)
class _Part:
    """One of the runs, ready to be trained."""

    config: RunConfig
    data: Data


def run_together(
    config: AnyConfig,
    *,
    base: Base | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    callbacks: Mapping[str, Sequence["Callback"]] | None = None,
) -> TogetherResult:
    """Train the parts of `config` in shared batches over one base, and write a run folder for each and for all.

    Args:
        config: of an ensemble, or of jobs.
        base: the base that it names, if it is loaded already; it carries the trained adapters afterwards.
        overwrite: replace the run that the out folder holds.
        resume: go on with what the out folder holds, which has this configuration.
        say: takes one line about what is happening.
        callbacks: passed to `train_together`, by the name of the part.

    Raises:
        ConfigError: the configuration has no parts, or they do not fit on one base.
    """
    out = Path(config.out)
    check_out(out, overwrite=overwrite, resume=resume)
    folders = [Path(part.out) for part in config.parts().values()]
    for folder in folders if not resume else ():
        check_out(folder, overwrite=overwrite)
    given = base is not None
    base, parts = _opened(config, base, say)
    model = base.model
    for name, part in parts.items():
        if not given:  # a new head is what the part alone would have, from its own seed
            draw_new_parts(model, part.config.train.seed)
        (method,) = part.config.adapters.values()
        attach_method(base, name, method, part.config, part.data, say)
        check_trainable(model, part.data, part.config.train, adapter=name)
    say(batches_line(model, *(part.config.train for part in parts.values())))
    with training_in(out, folders, resume=resume):
        if not resume:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "config.yaml", dump_config(_resolved(config, parts)))
        for part in parts.values():
            write_run_header(part.config, part.data, resume=resume)
        jobs = {name: Job(part.data, part.config.train) for name, part in parts.items()}
        trained = train_together(model, jobs, tokenizer=base.tokenizer, out=out, callbacks=callbacks, resume=resume)
    together, scores = _evaluated(config, base, parts, say)
    runs = {}
    for name, part in parts.items():
        with use_adapters(model, name):
            runs[name] = write_run_results(Path(part.config.out), base, part.data, trained[name], scores.get(name))
    results = _results(config, parts, runs, together)
    write_json(out / RESULTS, results)
    page = write_comparison(out, RESULTS)
    for folder in (out, *folders):
        drop_leftovers(folder)
    return TogetherResult(out, runs, together, results["rows"], page)


def _opened(config: AnyConfig, base: Base | None, say: Callable[[str], None]) -> tuple[Base, dict[str, _Part]]:
    """Open the base once and the rows of every part; the members of an ensemble share theirs."""
    parts: dict[str, _Part] = {}
    data: Data | None = None
    for name, wanted in config.parts().items():
        if isinstance(config, JobsConfig):
            say(f"{name}:")
            data = None
        found, base, data = open_parts(wanted, base, data, say)
        parts[name] = _Part(found, data)
    if base is None:
        raise ConfigError("there is nothing to train side by side: give an ensemble, or jobs")
    for name, part in parts.items():
        _check(config, part, name, next(iter(parts.values())))
    return base, parts


def _check(config: AnyConfig, part: _Part, name: str, first: _Part) -> None:
    """Refuse what cannot vote, or cannot have the head that the first part has."""
    if isinstance(config, RunConfig) and part.data.row_format.kind != "label":
        raise ConfigError(f"an ensemble votes on labels, and these rows are of kind {part.data.row_format.kind!r}")
    labels, shared = part.data.row_format.labels, first.data.row_format.labels
    if part.config.task and TASKS[part.config.task].is_classification and labels != shared:
        raise ConfigError(
            f"jobs.{name} has the labels {', '.join(labels)} and the first job {', '.join(shared)}, and there is one "
            "classifier; train them in runs of their own, or as a task that writes its labels"
        )


def _resolved(config: AnyConfig, parts: Mapping[str, _Part]) -> AnyConfig:
    """Return the configuration with the task that was found."""
    if isinstance(config, JobsConfig):
        return config.model_copy(update={"jobs": {name: part.config for name, part in parts.items()}})
    return config.model_copy(update={"task": next(iter(parts.values())).config.task})


def _evaluated(
    config: AnyConfig, base: Base, parts: Mapping[str, _Part], say: Callable[[str], None]
) -> tuple[Evaluation | None, dict[str, Evaluation]]:
    """Return the scores of the vote, if this is an ensemble, and those of every part that has rows held out."""
    if isinstance(config, RunConfig) and config.ensemble is not None:
        return _evaluated_vote(config.ensemble.vote, base, parts, say)
    found = {}
    for name, part in parts.items():
        split_name, split = evaluation_split(part.data)
        if split is None:
            continue
        say(f"{name}: evaluating on the {split_name} split: {len(split.examples)} rows")
        size = part.config.train.evaluation_batch_size
        with use_adapters(base.model, name):
            found[name] = evaluate(base.model, base.tokenizer, split, part.data.row_format, batch_size=size)
    return None, found


def _evaluated_vote(
    vote: Vote, base: Base, members: Mapping[str, _Part], say: Callable[[str], None]
) -> tuple[Evaluation | None, dict[str, Evaluation]]:
    """Do the same for an ensemble, whose members have the same rows, in one pass."""
    one = next(iter(members.values()))
    split_name, split = evaluation_split(one.data)
    if split is None:
        return None, {}
    say(f"evaluating on the {split_name} split: {len(split.examples)} rows")
    size = one.config.train.evaluation_batch_size
    found = evaluate_ensemble(
        base.model, base.tokenizer, split, one.data.row_format, list(members), vote=vote, batch_size=size
    )
    return found.together, found.members


def _results(
    config: AnyConfig, parts: Mapping[str, _Part], runs: Mapping[str, RunResult], together: Evaluation | None
) -> dict[str, Any]:
    """Return what the comparison page shows, as plain JSON values."""
    rows = [run.comparison_row(name) for name, run in runs.items()]
    lines = [f"{name}: {line}" for name, part in parts.items() for line in part.data.report.lines()]
    results = {
        "title": Path(config.out).resolve().name,
        "subtitle": f"{', '.join(runs)} on {config.base}, trained side by side",
        "rows": rows,
        "data": lines if isinstance(config, JobsConfig) else next(iter(parts.values())).data.report.lines(),
        "environment": environment(),
    }
    if together is None:
        return results
    vote = {
        **comparison_row("ensemble", together),
        "parameters": sum(row["parameters"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "seconds": max(row["seconds"] for row in rows),
    }
    return {
        **results,
        "rows": [*rows, vote],
        "texts": [row.prompt for row in together.predictions],
        "gold": [row.label for row in together.predictions],
    }
