"""A run's configuration as YAML, as flags, or as both: a flag wins over the file, and `--set a.b=c` over both."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peftly.errors import ConfigError
from peftly.models import read_quantization
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.config_mistakes import first_line, listed, nearest, shortened
from peftly.runs.version_0_1 import with_current_settings

__all__ = ["dump_config", "load_config"]

FLAGS = {
    "base": "base",
    "quantization": "quantization",
    "task": "task",
    "data": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "template": "data.template",
    "target": "data.target",
    "max_length": "data.max_length",
    "method": "method",
    "ensemble": "ensemble",
    "out": "out",
    "epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
}


OF_A_JOB = ("data", "method", "train")
"""Settings that a job may have of its own."""


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
    *,
    stored: bool = False,
) -> AnyConfig:
    """Read a configuration and check it. What `jobs` share may stand outside them.

    Args:
        path: a YAML file; None: `flags` and `overrides` say everything.
        overrides: `a.b=c`, the value read as YAML.
        flags: values by flag name (see `FLAGS`); None is "not given".
        defaults: top-level settings for what none of these say, where a command needs no more of them.
        stored: whether the file is the `config.yaml` of a run folder, perhaps of an earlier version.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is impossible.
    """
    written = {} if path is None else _read_yaml(Path(path))
    settings = {**(defaults or {}), **(with_current_settings(written) if stored else written)}
    for flag, value in (flags or {}).items():
        if value is not None:
            _put(settings, FLAGS[flag], value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes key=value, as in --set train.epochs=3; got {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not YAML; quote it") from error
        _put(settings, key.strip(), value)
    if "jobs" in settings:
        return _read_jobs(settings)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_line(error, RunConfig, flags=FLAGS)) from error


def dump_config(config: AnyConfig) -> str:
    """Return the resolved configuration, every default spelled out, as YAML that `load_config` reads."""
    settings = config.model_dump(mode="json")
    if isinstance(config, JobsConfig):
        jobs = settings["jobs"]
        first = next(iter(jobs.values()))
        settings = {
            **{key: value for key, value in first.items() if key not in (*OF_A_JOB, "ensemble", "out")},
            "jobs": {name: {key: job[key] for key in OF_A_JOB} for name, job in jobs.items()},
            "out": config.out,
        }
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _read_jobs(settings: Mapping[str, Any]) -> JobsConfig:
    """Make a run of every job: what stands outside the jobs, with what the job says itself."""
    jobs = settings["jobs"]
    if not isinstance(jobs, Mapping) or not jobs:
        raise ConfigError(f"jobs must be a mapping of names to settings, not {shortened(jobs)}")
    if settings.get("ensemble") is not None:
        raise ConfigError("ensemble and jobs do not go together; train the ensemble in a run of its own")
    shared = {key: value for key, value in settings.items() if key != "jobs"}
    runs: dict[str, RunConfig] = {}
    for name, own in jobs.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"jobs: {name!r} is no name for a job; take a text (in quotes if it is a number) of letters, digits, "
                "_ and -, for it names a folder"
            )
        if any(name.lower() == other.lower() for other in runs):
            raise ConfigError(f"jobs: {name!r} differs from another job in capitals only, and they name folders")
        runs[name] = _read_job(name, shared, own)
    return JobsConfig(jobs=runs, out=str(settings.get("out")))


def _read_job(name: str, shared: Mapping[str, Any], own: object) -> RunConfig:
    if not isinstance(own, Mapping):
        raise ConfigError(f"jobs.{name} must be a mapping with {listed(OF_A_JOB)}, not {shortened(own)}")
    strange = [str(key) for key in own if key not in OF_A_JOB]
    if strange:
        near = nearest(strange[0], OF_A_JOB)
        raise ConfigError(f"jobs.{name}.{strange[0]} is not a setting{near}; a job has {listed(OF_A_JOB)}")
    run = {**shared, **{key: _over(key, shared.get(key), value) for key, value in own.items()}}
    if isinstance(run.get("out"), str) and run["out"]:
        run["out"] = str(Path(run["out"]) / name)
    try:
        made = RunConfig.model_validate(run)
    except ValidationError as error:
        place = str(error.errors()[0]["loc"][0])
        raise ConfigError(first_line(error, RunConfig, f"jobs.{name}" if place in own else "", FLAGS)) from error
    if isinstance(made.method, tuple):
        raise ConfigError(f"jobs.{name}.method is a list; a job among others trains one method")
    return made


def _over(key: str, shared: object, own: object) -> object:
    """Put a job's own settings over the shared ones, key by key; another method takes none of the shared one's."""
    shared, own = _spelled_out(key, shared), _spelled_out(key, own)
    if not (isinstance(shared, Mapping) and isinstance(own, Mapping)):
        return own
    return {**shared, **own} if own.get("name") in (None, shared.get("name")) else own


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which plain YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 -- a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; give a YAML file, or flags alone (see peftly train --help)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text file: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        raise ConfigError(f"{path} is empty; it needs at least base, data, method and out")
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} holds a {type(settings).__name__}; expected keys and values, as in `base: smollm2-135m`"
        )
    return settings


def _put(settings: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b.c` in nested settings. Naming the method that is there, or another size, keeps the other settings."""
    *parents, last = key.split(".")
    place = settings
    for depth, parent in enumerate(parents):
        inner = place[parent] = _spelled_out(parent, place.get(parent, {}))
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {inner!r}, which has no settings below it")
        place = inner
    current, value = place.get(last), _spelled_out(last, value)
    if last == "method" and isinstance(current, dict) and value == {"name": current.get("name")}:
        return
    if last == "quantization" and isinstance(current, dict) and value == {"kind": current.get("kind")}:
        return
    if last == "ensemble" and isinstance(current, dict) and isinstance(value, dict):
        value = {**current, **value}
    place[last] = value


def _spelled_out(key: str, value: object) -> Any:
    """Return what is given by a bare name or number, as a method or an ensemble, as the mapping that it stands for."""
    if key == "method" and isinstance(value, str):
        return {"name": value}
    if key == "ensemble" and isinstance(value, int) and not isinstance(value, bool):
        return {"size": value}
    return read_quantization(value) if key == "quantization" else value
