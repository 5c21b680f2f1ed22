"""`jobs` in a configuration: runs by name, or lists of values of which every combination is a run."""

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from itertools import chain, count, product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftly.data import read_escapes
from peftly.errors import ConfigError
from peftly.models import read_quantization
from peftly.runs.config import JobsConfig, RunConfig, base_folder
from peftly.runs.config_mistakes import JOB_SETTINGS, first_line, joined, suggestion, unknown_key_advice
from peftly.settings import shortened

__all__ = ["as_mapping", "has_own_bases", "put", "read_jobs"]

_MAX_JOBS = 1000


def read_jobs(settings: Mapping[str, Any], flags: Mapping[str, str]) -> JobsConfig:
    """Make one run of each job: the settings outside `jobs`, overridden by the settings of the job.

    Args:
        settings: settings of the configuration, with `jobs`.
        flags: settings by the name of their command-line flag.

    Raises:
        ConfigError: the jobs are no mapping, a name is no name of a folder, or a setting is wrong.
    """
    jobs = settings["jobs"]
    if not isinstance(jobs, Mapping) or not jobs:
        raise ConfigError(f"jobs must be a mapping of names to settings, not {shortened(jobs)}")
    if settings.get("ensemble") is not None:
        raise ConfigError("ensemble and jobs do not go together; train the ensemble in a run of its own")
    if any(isinstance(value, list | tuple) for value in jobs.values()):
        jobs = _combinations(jobs)
    shared = {key: value for key, value in settings.items() if key != "jobs"}
    parts: dict[str, dict[str, Any]] = {}
    for name, settings_of_job in jobs.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"jobs: {name!r} cannot be the name of a job, because it names a folder; use letters, digits, _ and - "
                "(in quotes if it is a number)"
            )
        if any(name.lower() == other.lower() for other in parts):
            raise ConfigError(f"jobs: {name!r} differs from another job in capitals only, and they name folders")
        parts[name] = _merged(name, shared, settings_of_job)
    several = len({str(part.get("base")) for part in parts.values()}) > 1
    runs = {name: _run_of(name, part, jobs[name], flags, several=several) for name, part in parts.items()}
    return JobsConfig(jobs=runs, out=str(settings.get("out")))


def has_own_bases(settings: Mapping[str, Any]) -> bool:
    """Return whether jobs in a configuration name bases of their own."""
    jobs = settings.get("jobs")
    return isinstance(jobs, Mapping) and (
        "base" in jobs or any(isinstance(job, Mapping) and "base" in job for job in jobs.values())
    )


def _combinations(lists: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a job for each combination of the values in lists, named after its values.

    Raises:
        ConfigError: a setting has no list of values or cannot differ between jobs, or there are too many jobs.
    """
    for key, values in lists.items():
        if str(key).partition(".")[0] not in JOB_SETTINGS:
            raise ConfigError(f"jobs.{key} is a list, and jobs can differ in {joined(JOB_SETTINGS)}, not in {key}")
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(
                f"jobs.{key} must be a list of values like the other settings in jobs, not {shortened(values)}"
            )
    num_jobs = prod(map(len, lists.values()))
    if num_jobs > _MAX_JOBS:
        raise ConfigError(f"jobs has {num_jobs} combinations of values; at most {_MAX_JOBS} are trained")
    jobs: dict[str, dict[str, Any]] = {}
    for values in product(*lists.values()):
        job: dict[str, Any] = {}
        for key, value in sorted(zip(lists, values, strict=True), key=lambda pair: pair[0].count(".")):
            is_template = key == "data.template" and isinstance(value, str)
            put(job, key, read_escapes(value) if is_template else deepcopy(value))
        name = "_".join(_named(key, value) for key, value in zip(lists, values, strict=True))
        jobs[_free_name(name, {other.lower() for other in jobs})] = job
    return jobs


def _free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that no job has, whatever its capitals: with a number from 2 on if another job has it."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if each.lower() not in taken)


def _named(key: str, value: object) -> str:
    """Return a value in the name of a job, such as "num_virtual_tokens-20"; of a mapping, its first entry."""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
    leaf = key.rpartition(".")[2]
    text = base_folder(str(value)) if leaf == "base" else str(value)
    text = re.sub(r"[^\w-]+", "-", text).strip("-") or "value"
    return text[:40] if leaf in ("base", "name", "method") else f"{leaf}-{text[:40]}"


def _merged(name: str, shared: Mapping[str, Any], settings: object) -> dict[str, Any]:
    """Return the settings of a job, with the shared ones that it does not override."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"jobs.{name} must be a mapping with {joined(JOB_SETTINGS)}, not {shortened(settings)}")
    unknown = [str(key) for key in settings if key not in JOB_SETTINGS]
    if unknown:
        path = f"jobs.{name}.{unknown[0]}"
        advice = unknown_key_advice(path, settings[unknown[0]])
        hint = f"; {advice}" if advice else suggestion(unknown[0], JOB_SETTINGS)
        raise ConfigError(f"{path} is not a setting{hint}; a job has {joined(JOB_SETTINGS)}")
    return {**shared, **{key: _override(key, shared.get(key), value) for key, value in settings.items()}}


def _run_of(
    name: str, run: dict[str, Any], own: Mapping[str, Any], flags: Mapping[str, str], *, several: bool
) -> RunConfig:
    """Return the configuration of a job's run, whose folder is in that of its base if there are several bases."""
    if isinstance(run.get("out"), str) and run["out"]:
        folder = Path(run["out"]) / base_folder(str(run.get("base"))) if several else Path(run["out"])
        run["out"] = str(folder / name)
    try:
        config = RunConfig.model_validate(run)
    except ValidationError as error:
        setting = str(error.errors()[0]["loc"][0])
        raise ConfigError(first_line(error, RunConfig, f"jobs.{name}" if setting in own else "", flags)) from error
    if isinstance(config.method, tuple):
        raise ConfigError(f"jobs.{name}.method is a list; each job trains one method")
    return config


def _override(key: str, shared: object, value: object) -> object:
    """Override shared settings key by key by the settings of a job. A different method inherits no settings."""
    shared, value = as_mapping(key, shared), as_mapping(key, value)
    if not (isinstance(shared, Mapping) and isinstance(value, Mapping)):
        return value
    return {**shared, **value} if value.get("name") in (None, shared.get("name")) else value


def put(settings: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b.c` in nested settings. The current method, or another ensemble size, keeps its other settings.

    Args:
        settings: settings, which are changed.
        key: path of the setting.
        value: value in the form of YAML.

    Raises:
        ConfigError: a setting on the path has no settings below it.
    """
    *parents, last = key.split(".")
    target = settings
    for depth, parent in enumerate(parents):
        inner = target[parent] = as_mapping(parent, target.get(parent, {}))
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{key}: {'.'.join(parents[: depth + 1])} is {shortened(inner)}, which has no settings below it"
            )
        target = inner
    current, value = target.get(last), as_mapping(last, value)
    if last in ("method", "quantization") and isinstance(current, dict):
        name = "name" if last == "method" else "kind"
        if value == {name: current.get(name)}:
            return
    if last == "ensemble" and isinstance(current, dict) and isinstance(value, dict):
        value = {**current, **value}
    target[last] = value


def as_mapping(key: str, value: object) -> Any:
    """Convert the short form of a method, an ensemble or a quantization (a name or a number) into a mapping."""
    if key == "method" and isinstance(value, str):
        return {"name": value}
    if key == "ensemble" and isinstance(value, int) and not isinstance(value, bool):
        return {"size": value}
    return read_quantization(value) if key == "quantization" else value
