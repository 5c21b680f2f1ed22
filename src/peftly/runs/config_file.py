"""Read and write the configuration of a run: YAML, flags, or both. Flags override the file; `--set` overrides both."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peftly.data import read_escapes
from peftly.errors import ConfigError
from peftly.models import read_quantization
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.config_mistakes import first_line, joined, suggestion, unknown_key_advice
from peftly.runs.version_0_1 import with_current_settings
from peftly.runs.yaml_text import parse_yaml, read_yaml
from peftly.settings import shortened

__all__ = ["dump_config", "load_config"]

FLAGS = {
    "base": "base",
    "quantization": "quantization",
    "task": "task",
    "head": "head",
    "data": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "template": "data.template",
    "target": "data.target",
    "format": "data.format",
    "chat_template": "data.chat_template",
    "max_length": "data.max_length",
    "method": "method",
    "ensemble": "ensemble",
    "out": "out",
    "epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
}
"""Flags of the command line, and the settings that they set."""

_JOB_SETTINGS = ("data", "method", "train")
"""Settings that may differ between jobs."""


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
    *,
    stored: bool = False,
) -> AnyConfig:
    """Read a configuration and check it. Settings outside `jobs` apply to all jobs.

    Args:
        path: YAML file; None: the configuration consists of `flags` and `overrides`.
        overrides: settings `a.b=c`, with the value in YAML.
        flags: values by flag name (see `FLAGS`); None for a flag that was not given.
        defaults: top-level settings for commands that do not need them, with the lowest precedence.
        stored: whether the file is the `config.yaml` of a run folder, possibly of an earlier version.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is invalid.
    """
    written = {} if path is None else read_yaml(Path(path))
    written = _with_templates(written, read_escapes)
    settings = {**(defaults or {}), **(with_current_settings(written) if stored else written)}
    for flag, value in (flags or {}).items():
        if value is not None:
            _put(settings, FLAGS[flag], value)
    _check_keys(overrides)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes key=value, as in --set train.epochs=3; got {override!r}")
        try:
            value = parse_yaml(text, "the value")
        except ConfigError as error:
            raise ConfigError(f"--set {override}: {error}; quote it") from error
        _put(settings, key.strip(), value)
    if "jobs" in settings:
        return _read_jobs(settings)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_line(error, RunConfig, flags=FLAGS)) from error


def _check_keys(overrides: Sequence[str]) -> None:
    """Refuse a setting that `--set` sets twice."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise ConfigError(f"--set {key} is given twice, and a setting has one value; give it once")


def _with_templates(settings: Mapping[str, Any], convert: Callable[[str], str]) -> dict[str, Any]:
    """Return settings with the templates of the run or of its jobs converted.

    A template in single quotes, or without quotes, keeps the two characters of a typed line break in YAML.
    """
    result = dict(settings)
    data, jobs = result.get("data"), result.get("jobs")
    if isinstance(data, Mapping) and isinstance(data.get("template"), str):
        result["data"] = {**data, "template": convert(data["template"])}
    if isinstance(jobs, Mapping):
        result["jobs"] = {
            n: _with_templates(job, convert) if isinstance(job, Mapping) else job for n, job in jobs.items()
        }
    return result


def dump_config(config: AnyConfig) -> str:
    """Return the configuration with all defaults as YAML that `load_config` reads."""
    settings = config.model_dump(mode="json")
    if isinstance(config, JobsConfig):
        jobs = settings["jobs"]
        first = next(iter(jobs.values()))
        settings = {
            **{key: value for key, value in first.items() if key not in (*_JOB_SETTINGS, "ensemble", "out")},
            "jobs": {name: {key: job[key] for key in _JOB_SETTINGS} for name, job in jobs.items()},
            "out": config.out,
        }
    settings = _with_templates(settings, lambda template: template.replace("\\", "\\\\"))
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _read_jobs(settings: Mapping[str, Any]) -> JobsConfig:
    """Make one run of each job: the settings outside `jobs`, overridden by the settings of the job."""
    jobs = settings["jobs"]
    if not isinstance(jobs, Mapping) or not jobs:
        raise ConfigError(f"jobs must be a mapping of names to settings, not {shortened(jobs)}")
    if settings.get("ensemble") is not None:
        raise ConfigError("ensemble and jobs do not go together; train the ensemble in a run of its own")
    shared = {key: value for key, value in settings.items() if key != "jobs"}
    runs: dict[str, RunConfig] = {}
    for name, settings_of_job in jobs.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"jobs: {name!r} cannot be the name of a job, because it names a folder; use letters, digits, _ and - "
                "(in quotes if it is a number)"
            )
        if any(name.lower() == other.lower() for other in runs):
            raise ConfigError(f"jobs: {name!r} differs from another job in capitals only, and they name folders")
        runs[name] = _read_job(name, shared, settings_of_job)
    return JobsConfig(jobs=runs, out=str(settings.get("out")))


def _read_job(name: str, shared: Mapping[str, Any], settings: object) -> RunConfig:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"jobs.{name} must be a mapping with {joined(_JOB_SETTINGS)}, not {shortened(settings)}")
    unknown = [str(key) for key in settings if key not in _JOB_SETTINGS]
    if unknown:
        path = f"jobs.{name}.{unknown[0]}"
        advice = unknown_key_advice(path, settings[unknown[0]])
        hint = f"; {advice}" if advice else suggestion(unknown[0], _JOB_SETTINGS)
        raise ConfigError(f"{path} is not a setting{hint}; a job has {joined(_JOB_SETTINGS)}")
    run = {**shared, **{key: _override(key, shared.get(key), value) for key, value in settings.items()}}
    if isinstance(run.get("out"), str) and run["out"]:
        run["out"] = str(Path(run["out"]) / name)
    try:
        config = RunConfig.model_validate(run)
    except ValidationError as error:
        setting = str(error.errors()[0]["loc"][0])
        raise ConfigError(first_line(error, RunConfig, f"jobs.{name}" if setting in settings else "", FLAGS)) from error
    if isinstance(config.method, tuple):
        raise ConfigError(f"jobs.{name}.method is a list; each job trains one method")
    return config


def _override(key: str, shared: object, value: object) -> object:
    """Override shared settings key by key by the settings of a job. A different method inherits no settings."""
    shared, value = _as_mapping(key, shared), _as_mapping(key, value)
    if not (isinstance(shared, Mapping) and isinstance(value, Mapping)):
        return value
    return {**shared, **value} if value.get("name") in (None, shared.get("name")) else value


def _put(settings: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b.c` in nested settings. The current method, or another ensemble size, keeps its other settings."""
    *parents, last = key.split(".")
    target = settings
    for depth, parent in enumerate(parents):
        inner = target[parent] = _as_mapping(parent, target.get(parent, {}))
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{key}: {'.'.join(parents[: depth + 1])} is {shortened(inner)}, which has no settings below it"
            )
        target = inner
    current, value = target.get(last), _as_mapping(last, value)
    if key.endswith("data.template") and isinstance(value, str):
        value = read_escapes(value)
    if last == "method" and isinstance(current, dict) and value == {"name": current.get("name")}:
        return
    if last == "quantization" and isinstance(current, dict) and value == {"kind": current.get("kind")}:
        return
    if last == "ensemble" and isinstance(current, dict) and isinstance(value, dict):
        value = {**current, **value}
    target[last] = value


def _as_mapping(key: str, value: object) -> Any:
    """Convert the short form of a method, an ensemble or a quantization (a name or a number) into a mapping."""
    if key == "method" and isinstance(value, str):
        return {"name": value}
    if key == "ensemble" and isinstance(value, int) and not isinstance(value, bool):
        return {"size": value}
    return read_quantization(value) if key == "quantization" else value
