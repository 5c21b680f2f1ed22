"""A run's configuration: its parts, its file, and what is said about a mistake in it.

It comes from a YAML file, from flags, or from both: a flag wins over the file, and `--set a.b=c` over both.

A run trains one adapter; or several methods together, which `method` lists; or an `ensemble` of one method; or `jobs`,
each with rows of its own. The last two are trained side by side over the one base, and each of their parts is a run of
its own in a folder below.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from peftly.data import DataConfig, TaskName
from peftly.errors import ConfigError
from peftly.train_config import TrainConfig

if TYPE_CHECKING:
    from peftly.methods import MethodConfig
else:
    # The methods need torch, which is only worth its second of import once a method is named.
    MethodConfig = BaseModel

__all__ = ["AnyConfig", "EnsembleConfig", "JobsConfig", "RunConfig", "Vote", "dump_config", "load_config", "one_run"]

Vote = Literal["majority", "mean"]

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
    "ensemble": "ensemble",
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


def _choose_methods(value: object) -> MethodConfig | tuple[MethodConfig, ...]:
    """Do the same for a list of methods, which are trained together."""
    if not isinstance(value, list | tuple):
        return _choose_method(value)
    if not value:
        raise ConfigError("method is an empty list; name one method, or those that are trained together")
    return tuple(_choose_method(one) for one in value)


class EnsembleConfig(BaseModel):
    """Several adapters of one method that learn the same rows and decide together (Lester et al. 2021, section 6).

    Attributes:
        size: how many; each has a seed of its own, counted up from `train.seed`.
        vote: take the label that most members find likeliest, or that of the highest mean probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=2)
    vote: Vote = "majority"


def _choose_ensemble(value: object) -> object:
    """Turn `5` into `{size: 5}`."""
    return {"size": value} if isinstance(value, int) and not isinstance(value, bool) else value


class RunConfig(BaseModel):
    """Everything that decides what a run does.

    Attributes:
        base: what `load_base` takes: a short name, a Hub id, a folder or a `.gguf` file.
        task: what is learned of a row; None: what fits the base and the rows, and said.
        dtype: what the base computes in; `auto` is bf16 where the hardware computes in it, else fp32.
        device: `cpu`, `cuda:1`, …; None: the accelerator if there is one.
        data: where the rows come from and how they become text.
        method: the configuration of one of `METHODS`, or of several that are trained together.
        ensemble: train several such adapters side by side, and let them vote.
        train: how long, how fast, how often.
        out: the folder that the run writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(min_length=1)
    task: TaskName | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    data: DataConfig
    method: Annotated[
        SerializeAsAny[MethodConfig] | tuple[SerializeAsAny[MethodConfig], ...], BeforeValidator(_choose_methods)
    ]
    ensemble: Annotated[EnsembleConfig | None, BeforeValidator(_choose_ensemble)] = None
    train: TrainConfig = Field(default_factory=TrainConfig)
    out: str = Field(min_length=1)

    @field_validator("ensemble")
    @classmethod
    def _members_have_one_method(cls, value: EnsembleConfig | None, info: ValidationInfo) -> EnsembleConfig | None:
        if value is not None and isinstance(info.data.get("method"), tuple):
            raise ValueError("the members of an ensemble have one method, and method is a list")
        return value

    @property
    def adapters(self) -> dict[str, MethodConfig]:
        """The adapters that are trained together, by the names they get in the model."""
        if not isinstance(self.method, tuple):
            return {"default": self.method}
        names = [method.name for method in self.method]
        return {
            name if names.count(name) == 1 else f"{name}_{names[:place].count(name) + 1}": method
            for place, (name, method) in enumerate(zip(names, self.method, strict=True))
        }

    def parts(self) -> "dict[str, RunConfig]":
        """Return the runs of the members, by name, if this is one of an ensemble; else nothing."""
        size = 0 if self.ensemble is None else self.ensemble.size
        return {
            f"member_{place + 1}": self.model_copy(
                update={
                    "ensemble": None,
                    "train": self.train.model_copy(update={"seed": self.train.seed + place}),
                    "out": str(Path(self.out) / f"member_{place + 1}"),
                }
            )
            for place in range(size)
        }


class JobsConfig(BaseModel):
    """Several runs over one base that are trained side by side, each on rows of its own.

    Attributes:
        jobs: by name; each is a run that could be trained alone, in a folder below `out`.
        out: the folder that all of it is in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: dict[str, RunConfig]
    out: str

    @property
    def base(self) -> str:
        """What `load_base` takes."""
        return next(iter(self.jobs.values())).base

    def parts(self) -> dict[str, RunConfig]:
        """Return the runs by name."""
        return dict(self.jobs)


AnyConfig = RunConfig | JobsConfig


def one_run(config: AnyConfig) -> RunConfig:
    """Return a configuration that is of one run.

    Raises:
        ConfigError: it is of several.
    """
    parts = config.parts()
    if isinstance(config, JobsConfig) or parts:
        names = _listed(str(Path(config.out) / name) for name in parts)
        raise ConfigError(f"{config.out} holds runs that were trained side by side; name one of them: {names}")
    return config


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> AnyConfig:
    """Read a configuration and check it. What `jobs` share may stand outside them.

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
    if "jobs" in settings:
        return _read_jobs(settings)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_first_line(error, RunConfig)) from error


def dump_config(config: AnyConfig) -> str:
    """Return the resolved configuration, every default spelled out, as YAML that `load_config` reads."""
    settings = config.model_dump(mode="json")
    if isinstance(config, JobsConfig):
        jobs = settings["jobs"]
        shared = {key: value for key, value in next(iter(jobs.values())).items() if key not in (*OF_A_JOB, "out")}
        settings = {
            **{key: value for key, value in shared.items() if key != "ensemble"},
            "jobs": {name: {key: job[key] for key in OF_A_JOB} for name, job in jobs.items()},
            "out": config.out,
        }
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


OF_A_JOB = ("data", "method", "train")
"""Settings that a job may have of its own."""


def _read_jobs(settings: Mapping[str, Any]) -> JobsConfig:
    """Make a run of every job: what stands outside the jobs, with what the job says itself."""
    jobs = settings["jobs"]
    if not isinstance(jobs, Mapping) or not jobs:
        raise ConfigError(f"jobs must be a mapping of names to settings, not {_shortened(jobs)}")
    shared = {key: value for key, value in settings.items() if key != "jobs"}
    out = settings.get("out")
    runs = {}
    for name, own in jobs.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"jobs: {name!r} is no name for a job; take letters, digits, _ and -, for it names a folder"
            )
        if not isinstance(own, Mapping):
            raise ConfigError(f"jobs.{name} must be a mapping with {_listed(OF_A_JOB)}, not {_shortened(own)}")
        strange = [str(key) for key in own if key not in OF_A_JOB]
        if strange:
            near = _nearest(strange[0], OF_A_JOB)
            raise ConfigError(f"jobs.{name}.{strange[0]} is not a setting{near}; a job has {_listed(OF_A_JOB)}")
        run = {**shared, **{key: _over(shared.get(key), value) for key, value in own.items()}}
        if isinstance(out, str) and out:
            run["out"] = str(Path(out) / name)
        try:
            runs[name] = RunConfig.model_validate(run)
        except ValidationError as error:
            place = str(error.errors()[0]["loc"][0])
            raise ConfigError(_first_line(error, RunConfig, f"jobs.{name}" if place in own else "")) from error
        if isinstance(runs[name].method, tuple):
            raise ConfigError(f"jobs.{name}.method is a list; a job among others trains one method")
    if shared.get("ensemble") is not None:
        raise ConfigError("ensemble and jobs do not go together; train the ensemble in a run of its own")
    return JobsConfig(jobs=runs, out=str(out))


def _over(shared: object, own: object) -> object:
    """Put a job's own settings over the shared ones, key by key; another method takes none of the shared one's."""
    if not (isinstance(shared, Mapping) and isinstance(own, Mapping)) or own.get("name") not in (
        None,
        shared.get("name"),
    ):
        return own
    return {**shared, **own}


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
