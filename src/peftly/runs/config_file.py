"""Read and write the configuration of a run: YAML, flags, or both. Flags override the file; `--set` overrides both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peftly.data import read_escapes
from peftly.errors import ConfigError
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.config_mistakes import JOB_SETTINGS, first_line
from peftly.runs.jobs_config import has_own_bases, put, read_jobs
from peftly.runs.version_0_1 import with_current_settings
from peftly.runs.yaml_text import parse_yaml, read_yaml

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
    "early_stopping_patience": "train.early_stopping_patience",
    "seed": "train.seed",
}
"""Flags of the command line, and the settings that they set."""


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
    written.pop("$schema", None)  # an editor's
    settings = {**(defaults or {}), **(with_current_settings(written) if stored else written)}
    for flag, value in (flags or {}).items():
        if value is not None:
            _set(settings, FLAGS[flag], value)
    if (flags or {}).get("base") is not None and has_own_bases(settings):
        raise ConfigError("--base names one base, and the jobs of this configuration have bases of their own")
    _check_keys(overrides)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes key=value, as in --set train.epochs=3; got {override!r}")
        try:
            value = parse_yaml(text, "the value")
        except ConfigError as error:
            raise ConfigError(f"--set {override}: {error}; quote it") from error
        _set(settings, key.strip(), text.strip() if _is_plain_text(text, value) else value)
    if "jobs" in settings:
        return read_jobs(settings, FLAGS)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_line(error, RunConfig, flags=FLAGS)) from error


def _is_plain_text(text: str, value: object) -> bool:
    """Return whether the value of `--set` is the text as it was typed.

    YAML takes `#` behind a space for a comment, and a text with `:` at its end or in front of a space for a mapping.

    Args:
        text: value as it was typed.
        value: the same, read as YAML.
    """
    typed = text.strip()
    if "\n" in typed or not typed or typed[0] in "[{\"'|>&*!?-":
        return False
    return isinstance(value, (str, Mapping)) or typed[0] == "#"


def _set(settings: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b.c` in nested settings, with the escapes of a typed template replaced."""
    is_template = key.endswith("data.template") and isinstance(value, str)
    put(settings, key, read_escapes(str(value)) if is_template else value)


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
        own = [key for key in JOB_SETTINGS if key != "base" or config.groups()]
        settings = {
            **{key: value for key, value in first.items() if key not in (*own, "ensemble", "out")},
            "jobs": {name: {key: job[key] for key in own} for name, job in jobs.items()},
            "out": config.out,
        }
    settings = _with_templates(settings, lambda template: template.replace("\\", "\\\\"))
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
