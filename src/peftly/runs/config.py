"""The configuration of a run.

A run trains one adapter, several adapters that work together (`method` is a list), an `ensemble` of adapters of one
method, or `jobs` with their own data. Members of an ensemble and jobs are trained side by side on one base, and each of
them is a run with its own folder inside the output folder.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from peftly.data import DataConfig, TaskName
from peftly.errors import ConfigError
from peftly.evaluation import Vote
from peftly.methods import METHODS, MethodConfig
from peftly.models import Quantization, QuantizationName, read_quantization
from peftly.runs.config_mistakes import first_line, joined, suggestion
from peftly.settings import Settings, check_seed, shortened
from peftly.training import TrainConfig

__all__ = ["AnyConfig", "EnsembleConfig", "JobsConfig", "RunConfig", "base_folder", "one_run"]


def _choose_method(value: object) -> MethodConfig:
    """Convert `lora` or `{name: lora, rank: 16}` into the configuration of that method."""
    if isinstance(value, MethodConfig):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        got = shortened(value)
        raise ConfigError(f"method must be a name or a mapping with a name, not {got}; there are {joined(METHODS)}")
    name = settings["name"]
    if name not in METHODS:
        raise ConfigError(f"method {name!r} does not exist; there are {joined(METHODS)}{suggestion(name, METHODS)}")
    config_class = METHODS[name].config
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_line(error, config_class, prefix="method")) from error


def _choose_methods(value: object) -> MethodConfig | tuple[MethodConfig, ...]:
    """Convert one method, or a list of methods that are trained together."""
    if not isinstance(value, list | tuple):
        return _choose_method(value)
    if not value:
        raise ConfigError("method is an empty list; name one method, or the methods that are trained together")
    methods = tuple(_choose_method(method) for method in value)
    return methods if len(methods) > 1 else methods[0]


EnsembleSize = Annotated[int, Field(ge=2, le=1000)]


class EnsembleConfig(Settings):
    """Adapters of one method that learn the same examples and vote on labels (Lester et al. 2021, section 6)."""

    size: EnsembleSize
    """Number of members. The seed of member i (from 0) is `train.seed` + i."""
    vote: Vote = "majority"
    """Rule of the vote: the label that most members predict (majority), or the label with the highest mean probability
    (mean)."""


def _choose_ensemble(value: object) -> object:
    """Convert `5` into `{size: 5}`."""
    return {"size": value} if isinstance(value, int) and not isinstance(value, bool) else value


class RunConfig(Settings):
    """The settings of a run."""

    base: str = Field(min_length=1)
    """Base model: a short name such as `smollm2-135m`, a Hub id, a folder or a `.gguf` file."""
    task: TaskName | None = None
    """Task of the model. None: the task that fits the base and the data, which is reported."""
    head: Literal["auto", "transformers", "mean", "first"] = "auto"
    """New head of a sequence classifier: that of its class in transformers, which other tools load (transformers), or
    one linear layer on the mean of the token states (mean) or on the first token state (first). `auto`: the head of
    transformers, unless linear probes of the base are clearly better on other states."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the computation. `auto`: bfloat16 where the hardware multiplies in it, else float32."""
    device: str | None = None
    """Device, such as `cpu` or `cuda:1`. None: the accelerator if there is one, else the CPU."""
    device_map: str | dict[str, str | int] | None = None
    """Distribution of the base over devices, memory and disk, instead of `device`: `auto`, or devices by module
    path."""
    quantization: Annotated[
        Quantization | None,
        BeforeValidator(read_quantization, json_schema_input_type=Quantization | QuantizationName | None),
    ] = None
    """Quantization of the base's linear layers: a kind such as `nf4`, or a mapping with `kind` and its settings. None:
    the weights stay as they are in the files."""
    data: DataConfig
    """Files of the data, and their conversion into text."""
    method: Annotated[
        SerializeAsAny[MethodConfig] | tuple[SerializeAsAny[MethodConfig], ...], BeforeValidator(_choose_methods)
    ]
    """Method: a name, a mapping with `name` and the settings of this method, or a list of methods that are trained
    together."""
    ensemble: Annotated[
        EnsembleConfig | None,
        BeforeValidator(_choose_ensemble, json_schema_input_type=EnsembleConfig | EnsembleSize | None),
    ] = None
    """Several adapters of one method that vote on labels: their number, or a mapping with `size` and `vote`. None: one
    adapter."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Settings of the training."""
    baselines: bool = True
    """Score the untouched base, and for labels a linear probe of it, beside the adapter."""
    out: str = Field(min_length=1)
    """Output folder of the run."""

    @field_validator("method")
    @classmethod
    def _check_one_corrects_quantization(cls, value: MethodConfig | tuple[MethodConfig, ...]) -> object:
        if isinstance(value, tuple) and sum(method.corrects_quantization for method in value) > 1:
            raise ValueError("only one method may correct the quantization error: set init: qera for one of them")
        return value

    @field_validator("ensemble")
    @classmethod
    def _check_members_have_one_method(
        cls, value: EnsembleConfig | None, info: ValidationInfo
    ) -> EnsembleConfig | None:
        if value is not None and isinstance(info.data.get("method"), tuple):
            raise ValueError("the members of an ensemble have one method, and method is a list")
        return value

    @field_validator("train")
    @classmethod
    def _check_seeds_of_members(cls, value: TrainConfig, info: ValidationInfo) -> TrainConfig:
        ensemble = info.data.get("ensemble")
        if ensemble is not None:
            check_seed(value.seed + ensemble.size - 1)
        return value

    @property
    def adapters(self) -> dict[str, MethodConfig]:
        """Configurations of the adapters that are trained together, by their names in the model."""
        if not isinstance(self.method, tuple):
            return {"default": self.method}
        names = [method.name for method in self.method]
        return {
            name if names.count(name) == 1 else f"{name}_{names[:index].count(name) + 1}": method
            for index, (name, method) in enumerate(zip(names, self.method, strict=True))
        }

    def parts(self) -> "dict[str, RunConfig]":
        """Return the runs of the members of an ensemble by name; an empty dict if there is no ensemble."""
        size = 0 if self.ensemble is None else self.ensemble.size
        return {
            f"member_{index + 1}": self.model_copy(
                update={
                    "ensemble": None,
                    "train": self.train.model_copy(update={"seed": self.train.seed + index}),
                    "out": str(Path(self.out) / f"member_{index + 1}"),
                }
            )
            for index in range(size)
        }


def base_folder(base: str) -> str:
    """Return the name of the folder for the runs on a base: the last part of its name, without characters of paths."""
    name = Path(base.rstrip("/")).name.removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "base"


class JobsConfig(Settings):
    """The settings of runs with their own data, trained side by side on one base, or on one base after the other."""

    jobs: dict[str, RunConfig]
    """Runs by name. Each could be trained alone; its output folder is inside `out`, and with several bases in the
    folder of its base."""
    out: str
    """Output folder of all runs."""

    @field_validator("jobs")
    @classmethod
    def _check_folders_of_bases(cls, value: dict[str, RunConfig]) -> dict[str, RunConfig]:
        bases: dict[str, str] = {}
        for job in value.values():
            other = bases.setdefault(base_folder(job.base).lower(), job.base)
            if other != job.base:
                raise ValueError(f"the bases {other} and {job.base} have one name, and it names a folder")
        return value

    @property
    def base(self) -> str:
        """The bases of the runs, as `load_base` takes them, with commas between them."""
        return ", ".join(dict.fromkeys(job.base for job in self.jobs.values()))

    def groups(self) -> "dict[str, JobsConfig]":
        """Return the jobs of each base, by the name of its folder; an empty dict if all jobs have one base."""
        bases = dict.fromkeys(job.base for job in self.jobs.values())
        if len(bases) < 2:
            return {}
        return {
            base_folder(base): JobsConfig(
                jobs={name: job for name, job in self.jobs.items() if job.base == base},
                out=str(Path(self.out) / base_folder(base)),
            )
            for base in bases
        }

    def parts(self) -> dict[str, RunConfig]:
        """Return the runs by name."""
        return dict(self.jobs)


AnyConfig = RunConfig | JobsConfig


def one_run(config: AnyConfig, folder: str | Path | None = None) -> RunConfig:
    """Return a configuration after a check that it describes one run.

    Args:
        config: configuration of one or several runs.
        folder: current path of the run folder, for messages; None: the output folder in the configuration.

    Raises:
        ConfigError: the configuration describes several runs.
    """
    parts: Mapping[str, object] = config.parts()
    if isinstance(config, JobsConfig) or parts:
        parts = (config.groups() if isinstance(config, JobsConfig) else {}) or parts
        folder = Path(config.out if folder is None else folder)
        names = joined(str(folder / name) for name in parts)
        raise ConfigError(f"{folder} holds runs that were trained side by side; name one of them: {names}")
    return config
