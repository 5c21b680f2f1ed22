"""Runs that are trained side by side on one base: the members of an ensemble, or jobs with their own data.

Each of them has a run folder, as if it had been trained alone, inside the output folder. That folder also holds

config.yaml    configuration of all runs
results.json   scores of all runs, and of the ensemble
report.html    page made from results.json
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import use_adapters
from peftly.data import counted
from peftly.errors import ConfigError
from peftly.evaluation import Evaluation, Probe, Vote, evaluate_ensemble
from peftly.models import Base, draw_new_weights
from peftly.report import comparison_row, write_comparison
from peftly.runs.baselines import baseline_scores
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.config_file import dump_config
from peftly.runs.folder import RESULTS
from peftly.runs.held_out import evaluation_split
from peftly.runs.parts import Part, open_parts
from peftly.runs.probing import probe_of_next, start_from
from peftly.runs.progress import keeping_progress
from peftly.runs.replacing import (
    begin_run,
    check_resumable,
    check_run_folder,
    finish_run,
    write_mark,
    writing_into,
)
from peftly.runs.results import RunResult, baseline_rows, write_run_header, write_run_results
from peftly.runs.run import (
    attach_method,
    batches_line,
    evaluate_held_out,
    inputs_of,
    tracking_of,
)
from peftly.training import (
    Job,
    TrainResult,
    best_line,
    check_trackers,
    check_trainable,
    num_processes,
    train_together,
)
from peftly.utils import environment, stops_raised, write_json, write_text

if TYPE_CHECKING:
    from peftly.training import Callback

__all__ = ["TogetherResult", "run_side_by_side"]


@dataclass(frozen=True)
class TogetherResult:
    """The results of runs that were trained side by side.

    Attributes:
        out: folder of all runs.
        runs: result of each run by name.
        ensemble: scores of the vote; None for jobs, or if there are no held-out examples.
        rows: rows of the comparison page, as `comparison_row` makes them.
        report: path of the comparison page.
    """

    out: Path
    runs: dict[str, RunResult]
    ensemble: Evaluation | None
    rows: list[dict[str, Any]]
    report: Path


def run_side_by_side(
    config: AnyConfig,
    *,
    base: Base | None = None,
    overwrite: bool = False,
    resume: bool = False,
    log: Callable[[str], None] = lambda _: None,
    callbacks: Mapping[str, Sequence["Callback"]] | None = None,
    root: Path | None = None,
) -> TogetherResult:
    """Train several runs on one base; see `run_together`.

    Args:
        config: configuration of an ensemble, or of jobs with one base.
        base, overwrite, resume, log, callbacks: as for `run_together`.
        root: folder of runs on several bases, of which these are a part; it is the one that is resumed.
    """
    if num_processes() > 1:
        raise ConfigError("runs side by side share one process; start them without the launcher, or run by run")
    check_trackers([name for part in config.parts().values() for name in part.train.report_to], together=True)
    out = Path(config.out)
    folders = [Path(part.out) for part in config.parts().values()]
    with stops_raised(), writing_into(out):
        if resume:
            check_resumable(out, is_part=root is not None)
        else:
            inputs = [name for part in config.parts().values() for name in inputs_of(part)]
            for folder in (out, *folders):
                check_run_folder(folder, overwrite=overwrite, inputs=inputs)
        is_given = base is not None
        base, parts, chosen = open_parts(config, base, log)
        model, first = base.model, next(iter(parts.values()))
        probes: list[Probe | None] = []
        for name, part in parts.items():
            if not is_given:  # each run gets the new head that its own seed gives
                draw_new_weights(model, part.config.train.seed)
            same_data = _have_same_data(part, first)
            probes.append(probe_of_next(base, part.data, chosen, is_same_data=same_data))
            (method,) = part.config.adapters.values()
            attach_method(base, name, method, part.config, part.data, log)
            start_from(base, [name], part.data, probes[-1])
            check_trainable(model, part.data, part.config.train, adapter=name)
        log(batches_line(model, *(part.config.train for part in parts.values())))
        for line in dict.fromkeys(best_line(part.config.train, part.data) for part in parts.values()):
            log(line)
        with keeping_progress(out, folders, resume=resume, root=root), ExitStack() as stack:
            tracking = {
                name: stack.enter_context(
                    tracking_of(part.config, partial(_log_of, name, log), name=f"{out.name}-{name}")
                )
                for name, part in parts.items()
            }
            if not resume:
                begin_run(out, partial(_write_headers, config=config, parts=parts))
            trained = train_together(
                model,
                {name: Job(part.data, part.config.train) for name, part in parts.items()},
                tokenizer=base.tokenizer,
                out=out,
                callbacks={name: [own, *(callbacks or {}).get(name, ())] for name, own in tracking.items()},
                resume=resume,
                delete_checkpoints=False,
            )
            result = _write_results(config, base, parts, probes, trained, log, is_given=is_given)
            for name, run in result.runs.items():
                tracking[name].log_final(run.evaluation)
        finish_run(out, folders)
    return result


def _have_same_data(one: Part, other: Part) -> bool:
    """Return whether two runs have equal data: those of an ensemble, or data read with the same settings."""
    return one.data is other.data or one.config.data == other.config.data


def _share_baselines(one: Part, other: Part) -> bool:
    """Return whether the scores without an adapter are the same for two runs with the same probe."""
    return _have_same_data(one, other) and one.config.baselines == other.config.baselines


def _write_headers(folder: Path, config: AnyConfig, parts: dict[str, Part]) -> None:
    """Write the first files of all runs."""
    write_mark(folder, is_finished=False, parts=tuple(parts))
    write_text(folder / "config.yaml", dump_config(_resolved(config, parts)))
    for name, part in parts.items():
        write_run_header(folder / name, part.config, part.data)


def _write_results(
    config: AnyConfig,
    base: Base,
    parts: dict[str, Part],
    probes: Sequence[Probe | None],
    trained: Mapping[str, TrainResult],
    log: Callable[[str], None],
    *,
    is_given: bool,
) -> TogetherResult:
    """Evaluate all runs, and write their last files and the comparison."""
    out = Path(config.out)
    vote, evaluations = _evaluate(config, base, parts, log)
    runs = {}
    scored: list[tuple[Part, Probe | None, dict[str, Evaluation]]] = []
    for (name, part), probe in zip(parts.items(), probes, strict=True):
        equal = [scores for other, of_other, scores in scored if of_other is probe and _share_baselines(other, part)]
        if not equal and not is_given:  # a probe reads the new layers that the seed of its own run gives
            draw_new_weights(base.model, part.config.train.seed)
        baselines = equal[0] if equal else baseline_scores(base, probe, part.data, part.config, log)
        scored.append((part, probe, baselines))
        folder = Path(part.config.out)
        runs[name] = write_run_results(folder, part.data, trained[name], evaluations.get(name), baselines)
    results = _comparison(config, parts, runs, vote)
    write_json(out / RESULTS, results)
    return TogetherResult(out, runs, vote, results["rows"], write_comparison(out, RESULTS))


def _resolved(config: AnyConfig, parts: Mapping[str, Part]) -> AnyConfig:
    """Return the configuration with the tasks and the maximum lengths that were chosen."""
    if isinstance(config, JobsConfig):
        return config.model_copy(update={"jobs": {name: part.config for name, part in parts.items()}})
    first = next(iter(parts.values())).config
    train = config.train.model_copy(update={"epochs": first.train.epochs})
    return config.model_copy(update={"task": first.task, "head": first.head, "data": first.data, "train": train})


def _evaluate(
    config: AnyConfig, base: Base, parts: Mapping[str, Part], log: Callable[[str], None]
) -> tuple[Evaluation | None, dict[str, Evaluation]]:
    """Return the scores of the vote (None for jobs), and the scores of each run with held-out examples."""
    if isinstance(config, RunConfig) and config.ensemble is not None:
        return _evaluate_vote(config.ensemble.vote, base, parts, log)
    evaluations = {}
    for name, part in parts.items():
        with use_adapters(base.model, name):
            scores = evaluate_held_out(base, part.data, part.config, partial(_log_of, name, log))
        if scores is not None:
            evaluations[name] = scores
    return None, evaluations


def _log_of(name: str, log: Callable[[str], None], line: str) -> None:
    """Log a line about one of the runs."""
    log(f"{name}: {line}")


def _evaluate_vote(
    vote: Vote, base: Base, members: Mapping[str, Part], log: Callable[[str], None]
) -> tuple[Evaluation | None, dict[str, Evaluation]]:
    """Return the scores of the vote and of each member, from one pass over their common examples."""
    first = next(iter(members.values()))
    split_name, split = evaluation_split(first.data)
    if split is None:
        return None, {}
    log(f"evaluating on the {split_name} split: {counted(len(split.examples), 'example')}")
    batch_size = first.config.train.evaluation_batch_size
    scores = evaluate_ensemble(
        base.model, base.tokenizer, split, first.data.row_format, list(members), vote=vote, batch_size=batch_size
    )
    return scores.together, scores.members


def _comparison(
    config: AnyConfig, parts: Mapping[str, Part], runs: Mapping[str, RunResult], vote: Evaluation | None
) -> dict[str, Any]:
    """Return the content of the comparison page as JSON values."""
    rows = [run.comparison_row(name) | {"is_together": len(runs) > 1} for name, run in runs.items()]
    rows += baseline_rows(runs)
    lines = [f"{name}: {line}" for name, part in parts.items() for line in part.data.report.lines()]
    results = {
        "title": Path(config.out).resolve().name,
        "subtitle": f"{', '.join(runs)} on {config.base}, trained side by side",
        "rows": rows,
        "data": lines if isinstance(config, JobsConfig) else next(iter(parts.values())).data.report.lines(),
        "environment": environment(),
    }
    if vote is None:
        return results
    vote_row = {
        **comparison_row("ensemble", vote),
        "parameters": sum(row["parameters"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "seconds": max(row["seconds"] or 0 for row in rows),
    }
    return {
        **results,
        "rows": [*rows, vote_row],
        "texts": [prediction.prompt for prediction in vote.predictions],
        "gold": [prediction.label for prediction in vote.predictions],
    }
