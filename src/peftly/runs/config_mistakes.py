"""Messages about mistakes in a configuration: one line with the setting, the value and the closest valid name."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftly.errors import ConfigError
from peftly.runs.version_0_1 import RENAMED_SETTINGS
from peftly.settings import shortened

__all__ = ["TRANSFORMERS_NAMES", "first_line", "joined", "suggestion"]

TRANSFORMERS_NAMES = {
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.evaluation_batch_size",
    "optim": "train.optimizer",
    "save_strategy": "train.save_steps",
    "eval_strategy": "train.eval_steps",
    "evaluation_strategy": "train.eval_steps",
    "bf16": "dtype=bfloat16",
    "fp16": "dtype=float16",
    "output_dir": "out",
    "model_name_or_path": "base",
    "max_seq_length": "data.max_length",
    "load_in_4bit": "quantization=nf4",
    "load_in_8bit": "quantization=int8",
    "r": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
}
"""Names of settings in transformers, TRL and PEFT, and the settings of peftly with the same purpose."""


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
    return line if len(problems) == 1 else f"{line} (and {len(problems) - 1} more)"


def _describe(problem: ErrorDetails, model: type[BaseModel], prefix: str, flags: Mapping[str, str]) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    keys = [str(part) for part in problem["loc"]]
    path = ".".join([prefix] * bool(prefix) + keys)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, model, prefix)
    if problem["type"] == "invalid_key":
        return f"{path} is not a setting: the names of settings are texts"
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


def _unknown_key(path: str, model: type[BaseModel], prefix: str) -> str:
    """Return a line with the valid name of a setting: a known other name, or the closest name in the configuration."""
    parent, _, leaf = path.rpartition(".")
    keys = [".".join(filter(None, [prefix, key])) for key in _keys(model)]
    other_name = _other_name(path, keys, prefix)
    if other_name is not None:
        return f"{path} is not a setting; use {other_name}"
    neighbours = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(keys)}
    for leaves in (neighbours, anywhere):
        if close := difflib.get_close_matches(leaf, leaves, n=1):
            return f"{path} is not a setting; did you mean {leaves[close[0]]}?"
    return f"{path} is not a setting; {parent or 'the top level'} has {joined(neighbours)}"


def _other_name(path: str, keys: list[str], prefix: str) -> str | None:
    """Return the setting of peftly for a setting of version 0.1.0 or of transformers; None if there is none."""
    job = f"{prefix}." if prefix.startswith("jobs.") else ""
    setting = path.removeprefix(job)
    current = RENAMED_SETTINGS.get(setting) or TRANSFORMERS_NAMES.get(setting.rpartition(".")[2])
    if current is None or (prefix == "method" and current not in keys):
        return None  # the method has no such setting
    # Jobs have their own data, method and training; they share all other settings.
    return f"{job}{current}" if "." in current else current


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
