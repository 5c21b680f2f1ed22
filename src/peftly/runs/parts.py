"""Configurations and data of runs that are trained side by side, before their training."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from peftly.data import Data
from peftly.errors import ConfigError
from peftly.evaluation import Probe
from peftly.models import TASKS, Base
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.positions import max_length_of
from peftly.runs.probing import choose_head
from peftly.runs.run import open_base_and_data

__all__ = ["Part", "open_parts"]


class Part(NamedTuple):
    """A run before its training: configuration with the chosen task, and data."""

    config: RunConfig
    data: Data


def open_parts(
    config: AnyConfig, base: Base | None, log: Callable[[str], None]
) -> tuple[Base, dict[str, Part], Probe | None]:
    """Open the base once, with the head of all runs, which the first one chooses, and the data of every run.

    The members of an ensemble share their data, and so do jobs with the same settings of the data.

    Args:
        config: configuration of an ensemble, or of jobs with one base.
        base: base of all runs, if it is already open.
        log: function that receives each line of progress.

    Returns:
        The base, the runs by name, and the probe of the first run.

    Raises:
        ConfigError: there are no runs, or they cannot share the base.
    """
    is_given = base is not None
    parts: dict[str, Part] = {}
    data: Data | None = None
    for name, part_config in config.parts().items():
        if isinstance(config, JobsConfig):
            log(f"{name}:")
            part_config, data = _with_same_data(part_config, base, config, parts, log)
        resolved, base, data = open_base_and_data(part_config, base, data, log)
        parts[name] = Part(resolved, data)
    if base is None:
        raise ConfigError("there is nothing to train side by side: the configuration has neither ensemble nor jobs")
    for name, part in parts.items():
        _check(config, part, name, next(iter(parts.values())))
    first = next(iter(parts.values()))
    base, head, probe = choose_head(base, first.config, first.data, log, is_given=is_given)
    update = {"head": head}
    return base, {name: Part(part.config.model_copy(update=update), part.data) for name, part in parts.items()}, probe


def _with_same_data(
    config: RunConfig, base: Base | None, jobs: JobsConfig, parts: Mapping[str, Part], log: Callable[[str], None]
) -> tuple[RunConfig, Data | None]:
    """Return the configuration of a job, and the data of an earlier one with the same settings and maximum length."""
    if base is None:
        return config, None
    max_length = min(config.data.max_length, max_length_of(base, config))
    settings = config.data.model_copy(update={"max_length": max_length})
    for name, part in parts.items():
        if jobs.jobs[name].data == config.data and part.config.data == settings:
            log(f"the data are those of {name}")
            return config.model_copy(update={"data": settings}), part.data
    return config, None


def _check(config: AnyConfig, part: Part, name: str, first: Part) -> None:
    """Refuse members that cannot vote, and jobs that cannot share the classification head of the first job."""
    if isinstance(config, RunConfig) and part.data.row_format.kind != "label":
        raise ConfigError(f"an ensemble votes on labels, but these data are of kind {part.data.row_format.kind!r}")
    template, others = part.data.row_format.chat_template, first.data.row_format.chat_template
    if part.data.row_format.kind == first.data.row_format.kind == "chat" and template != others:
        raise ConfigError(
            f"jobs.{name} has another data.chat_template than the first job, and all jobs share one tokenizer; set the "
            "same for all, or train them in separate runs"
        )
    labels, shared = part.data.row_format.labels, first.data.row_format.labels
    if part.config.task and TASKS[part.config.task].is_classification and labels != shared:
        raise ConfigError(
            f"jobs.{name} has the labels {', '.join(labels)}, but the first job has {', '.join(shared)}, and all jobs "
            "share one classification head; train them in separate runs, or with task causal_lm"
        )
