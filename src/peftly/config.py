"""A run's configuration: its parts, its file, and what is said about a mistake in it.

It comes from a YAML file, from flags, or from both: a flag wins over the file, and `--set a.b=c` over both.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails

from peftly.data import DataConfig, TaskName
from peftly.errors import ConfigError
from peftly.train_config import TrainConfig

if TYPE_CHECKING:
    from peftly.methods import MethodConfig
else:
    # The methods need torch, which is only worth its second of import once a method is named.
    MethodConfig = BaseModel

__all__ = ["RunConfig", "dump_config", "load_config"]

FLAGS = {
    "base": "base",
    "task": "task",
    "data": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "template": "data.template",
    "target": "data.target",
    "max_length": "data.max_length",
    "method": "method",
    "out": "out",
    "epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
}


def _choose_method(value: object) -> MethodConfig:
    """Turn `lora` or `{name: lora, rank: 16}` into the configuration of that method."""
    from peftly.methods import METHODS

    if isinstance(value, MethodConfig):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ConfigError(
            f"method must be a name or a mapping with a name, not {value!r}; there are {_listed(METHODS)}"
        )
    name = settings["name"]
    if name not in METHODS:
        raise ConfigError(f"method {name!r} does not exist{_nearest(name, METHODS)}; there are {_listed(METHODS)}")
    config_class = METHODS[name].config
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_first_line(error, config_class, prefix="method")) from error


class RunConfig(BaseModel):
    """Everything that decides what a run does.

    Attributes:
        base: what `load_base` takes: a short name, a Hub id, a folder or a `.gguf` file.
        task: what is learned of a row; None: what fits the base and the rows, and said.
        dtype: what the base computes in; `auto` is bf16 where the hardware computes in it, else fp32.
        device: `cpu`, `cuda:1`, …; None: the accelerator if there is one.
        data: where the rows come from and how they become text.
        method: the configuration of one of `METHODS`.
        train: how long, how fast, how often.
        out: the folder that the run writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(min_length=1)
    task: TaskName | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    data: DataConfig
    method: SerializeAsAny[Annotated[MethodConfig, BeforeValidator(_choose_method)]]
    train: TrainConfig = Field(default_factory=TrainConfig)
    out: str = Field(min_length=1)


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> RunConfig:
    """Read a configuration and check it.

    Args:
        path: a YAML file; None: `flags` and `overrides` say everything.
        overrides: `a.b=c`, the value read as YAML.
        flags: values by flag name (see `FLAGS`); None is "not given".
        defaults: top-level settings for what none of these say, where a command needs no more of them.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is impossible.
    """
    settings = {**(defaults or {}), **({} if path is None else _read_yaml(Path(path)))}
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
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_first_line(error, RunConfig)) from error


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration, every default spelled out, as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
    """Set `a.b.c` in nested settings; a method given by its bare name becomes a mapping on the way."""
    *parents, last = key.split(".")
    place = settings
    for depth, parent in enumerate(parents):
        inner = place.setdefault(parent, {})
        if depth == 0 and parent == "method" and isinstance(inner, str):
            inner = place[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {inner!r}, which has no settings below it")
        place = inner
    if key == "method" and isinstance(value, str):
        current = place.get("method")
        if isinstance(current, dict) and current.get("name") == value:
            return
    place[last] = value


def _first_line(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Say the first problem, unknown keys first: a typing error is often also a missing key."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    line = _describe(problems[0], model, prefix)
    return line if len(problems) == 1 else f"{line} (and {len(problems) - 1} more)"


def _describe(problem: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    places = [str(part) for part in problem["loc"]]
    path = ".".join([prefix] * bool(prefix) + places)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, places, model, prefix)
    if problem["type"] == "missing":
        flag = next(
            (f" (--{name.replace('_', '-')})" for name, key in FLAGS.items() if key in (path, f"{path}.train")), ""
        )
        return f"{path} is missing{flag}"
    message = re.sub(r"^(Input|Value error,) ?(should be )?|, unable to parse.*", "", problem["msg"])
    got = _shortened(problem["input"])
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
    if near:
        return f"{path} is not a setting; did you mean {near[0]}?"
    return f"{path} is not a setting; {parent or 'the top level'} has {_listed(neighbours)}"


def _keys(model: type[BaseModel]) -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{inner}" for inner in _keys(field.annotation))


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shortened(value: object, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
