"""What is said about a mistake in a configuration: one line with its place, what came, and the nearest right word."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftly.errors import ConfigError
from peftly.runs.version_0_1 import RENAMED_SETTINGS

__all__ = ["first_line", "listed", "nearest", "shortened"]


def first_line(
    error: ValidationError, model: type[BaseModel], prefix: str = "", flags: Mapping[str, str] | None = None
) -> str:
    """Say the first problem, unknown keys first: a typing error is often also a missing key.

    Args:
        error: what pydantic found.
        model: what it was to make.
        prefix: where in the configuration that stands.
        flags: of the command line, by name, and the settings that they lead to.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    line = _describe(problems[0], model, prefix, flags or {})
    return line if len(problems) == 1 else f"{line} (and {len(problems) - 1} more)"


def _describe(problem: ErrorDetails, model: type[BaseModel], prefix: str, flags: Mapping[str, str]) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    places = [str(part) for part in problem["loc"]]
    path = ".".join([prefix] * bool(prefix) + places)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, places, model, prefix)
    if problem["type"] == "missing":
        flag = next(
            (f" (--{name.replace('_', '-')})" for name, key in flags.items() if key in (path, f"{path}.train")), ""
        )
        return f"{path} is missing{flag}"
    message = re.sub(r"^(Input|Value error,) ?(should be )?|, unable to parse.*", "", problem["msg"])
    got = shortened(problem["input"])
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{path}: {message}" if got in message or not path else f"{path}: {message}; got {got}"
    return f"{path} must be {message}; got {got}"


def _unknown_key(path: str, places: list[str], model: type[BaseModel], prefix: str) -> str:
    """Name the nearest key: first among its neighbours, then anywhere in the configuration."""
    parent = path.rpartition(".")[0]
    keys = [".".join(filter(None, [prefix, key])) for key in _keys(model)]
    neighbours = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = [
        leaves[leaf] for leaves in (neighbours, anywhere) for leaf in difflib.get_close_matches(places[-1], leaves, n=1)
    ]
    current = RENAMED_SETTINGS.get(path)
    if current is not None:
        return f"{path} is not a setting; it is called {current} now"
    if near:
        return f"{path} is not a setting; did you mean {near[0]}?"
    return f"{path} is not a setting; {parent or 'the top level'} has {listed(neighbours)}"


def _keys(model: type[BaseModel]) -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from (f"{name}.{inner}" for inner in _keys(part))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return words that suggest the name that was meant, if one is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Return names, parted by commas."""
    return ", ".join(names)


def shortened(value: object, length: int = 80) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
