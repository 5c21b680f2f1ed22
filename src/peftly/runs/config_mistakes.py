"""Messages about mistakes in a configuration: one line with the setting, the value and the closest valid name."""

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftly.errors import ConfigError
from peftly.methods import METHODS
from peftly.runs.version_0_1 import RENAMED_SETTINGS
from peftly.setting_names import OtherName, other_name
from peftly.settings import shortened, value_problem

__all__ = ["JOB_SETTINGS", "first_line", "joined", "suggestion", "unknown_key_advice"]

JOB_SETTINGS = ("base", "data", "method", "train")
"""Settings that may differ between jobs."""


def first_line(
    error: ValidationError, model: type[BaseModel], prefix: str = "", flags: Mapping[str, str] | None = None
) -> str:
    """Return a line on the first problem. Unknown keys come first: a misspelt key often causes a missing one.

    Args:
        error: validation error of pydantic.
        model: class that was validated.
        prefix: path of the validated settings in the configuration.
        flags: settings by the name of their command-line flag.
    """
    keys_first = ("extra_forbidden", "invalid_key")
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] not in keys_first)
    line = _describe(problems[0], model, prefix, flags or {})
    others = dict.fromkeys(".".join([prefix] * bool(prefix) + [str(key) for key in p["loc"]]) for p in problems[1:])
    return f"{line} (also wrong: {joined(filter(None, others))})" if any(others) else line


def _describe(problem: ErrorDetails, model: type[BaseModel], prefix: str, flags: Mapping[str, str]) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    keys = [str(part) for part in problem["loc"]]
    path = ".".join([prefix] * bool(prefix) + keys)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, problem["input"], model, prefix)
    if problem["type"] == "invalid_key":
        return f"{path} is not a setting: the names of settings are texts"
    if problem["type"] == "missing":
        flag = next(
            (f" (--{name.replace('_', '-')})" for name, key in flags.items() if key in (path, f"{path}.train")), ""
        )
        return f"{path} is missing{flag}"
    if problem["type"] == "model_type":
        example = f", as in {keys[-1]}: {{train: {problem['input']}}}" if keys[-1] == "data" else ""
        return f"{path} must be a mapping of settings{example}; got {shortened(problem['input'])}"
    return value_problem(problem, path)


def _unknown_key(path: str, given: object, model: type[BaseModel], prefix: str) -> str:
    """Return a line with the valid name of a setting: a known other name, or the closest name in the configuration."""
    parent, _, leaf = path.rpartition(".")
    keys = [".".join(filter(None, [prefix, key])) for key in _keys(model)]
    if advice := unknown_key_advice(path, given, keys, prefix):
        return f"{path} is not a setting; {advice}"
    if prefix == "method" and (
        others := [name for name, method in METHODS.items() if leaf in method.config.model_fields]
    ):
        return f"{path} is not a setting of this method; {joined(others)} {'has' if len(others) == 1 else 'have'} it"
    neighbours = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    anywhere = {key.rpartition(".")[2]: key for key in reversed([*_method_settings(), *keys])}
    if leaf in anywhere and prefix != "method":
        same = dict.fromkeys(key for key in [*keys, anywhere[leaf]] if key.rpartition(".")[2] == leaf)
        return f"{path} is not a setting; did you mean {' or '.join(same)}?"
    for leaves in (neighbours, anywhere):
        if close := difflib.get_close_matches(leaf, leaves, n=1):
            return f"{path} is not a setting; did you mean {leaves[close[0]]}?"
    return f"{path} is not a setting; {parent or 'the top level'} has {joined(neighbours)}"


def unknown_key_advice(path: str, given: object, keys: Container[str] = (), prefix: str = "") -> str:
    """Return advice for a setting of version 0.1.0 or of another tool, such as "use train.epochs"; else an empty text.

    Args:
        path: path of the unknown setting in the configuration.
        given: value of the setting.
        keys: paths of the settings that exist at this level, if `prefix` is "method".
        prefix: path of the validated settings in the configuration.
    """
    job = re.match(r"jobs\.[^.]+\.", path)
    setting = path[job.end() :] if job else path
    renamed = RENAMED_SETTINGS.get(setting)
    other = OtherName((renamed,)) if renamed else other_name(setting.rpartition(".")[2])
    if other is None:
        return ""
    if prefix == "method":  # the method may lack such a setting
        existing = tuple(name for name in other.settings if not name.startswith("method.") or name in keys)
        if other.settings and not existing:
            return ""
        other = other._replace(settings=existing)
    if job:  # jobs have their own base, data, method and training; they share all other settings
        own = tuple(f"{job[0]}{name}" if name.partition(".")[0] in JOB_SETTINGS else name for name in other.settings)
        other = other._replace(settings=own)
    return other.advice(given)


def _method_settings() -> Iterator[str]:
    """Yield the settings of all methods."""
    yield from (f"method.{name}" for method in METHODS.values() for name in method.config.model_fields)


def _keys(model: type[BaseModel]) -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from (f"{name}.{inner}" for inner in _keys(part))


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean …?" with the closest of several names, or an empty text if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def joined(names: Iterable[str]) -> str:
    """Return names with commas between them."""
    return ", ".join(names)
