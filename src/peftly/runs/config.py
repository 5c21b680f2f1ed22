"""A run's configuration.

A run trains one adapter; or several methods together, which `method` lists; or an `ensemble` of one method; or `jobs`,
each with rows of its own. The last two are trained side by side over the one base, and each of their parts is a run of
its own in a folder below.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

from peftly.data import DataConfig, TaskName
from peftly.errors import ConfigError
from peftly.evaluation import Vote
from peftly.methods import METHODS
from peftly.models import Quantization, read_quantization
from peftly.runs.config_mistakes import first_line, listed, nearest
from peftly.training import TrainConfig

if TYPE_CHECKING:
    from peftly.methods import MethodConfig
else:
    # The methods need torch, which is only worth its second of import once a method is named.
    MethodConfig = BaseModel

__all__ = ["AnyConfig", "EnsembleConfig", "JobsConfig", "RunConfig", "one_run"]


def _choose_method(value: object) -> MethodConfig:
    """Turn `lora` or `{name: lora, rank: 16}` into the configuration of that method."""
    if isinstance(value, MethodConfig):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ConfigError(f"method must be a name or a mapping with a name, not {value!r}; there are {listed(METHODS)}")
    name = settings["name"]
    if name not in METHODS:
        raise ConfigError(f"method {name!r} does not exist{nearest(name, METHODS)}; there are {listed(METHODS)}")
    config_class = METHODS[name].config
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_line(error, config_class, prefix="method")) from error


def _choose_methods(value: object) -> MethodConfig | tuple[MethodConfig, ...]:
    """Do the same for a list of methods, which are trained together."""
    if not isinstance(value, list | tuple):
        return _choose_method(value)
    if not value:
        raise ConfigError("method is an empty list; name one method, or those that are trained together")
    several = tuple(_choose_method(one) for one in value)
    return several if len(several) > 1 else several[0]


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
        device_map: instead, how the base is spread over several, or over memory and disk; see `load_base`.
        quantization: how the base's linear layers are kept, `nf4` for example; None: as its files have them.
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
    device_map: str | dict[str, str | int] | None = None
    quantization: Annotated[Quantization | None, BeforeValidator(read_quantization)] = None
    data: DataConfig
    method: Annotated[
        SerializeAsAny[MethodConfig] | tuple[SerializeAsAny[MethodConfig], ...], BeforeValidator(_choose_methods)
    ]
    ensemble: Annotated[EnsembleConfig | None, BeforeValidator(_choose_ensemble)] = None
    train: TrainConfig = Field(default_factory=TrainConfig)
    out: str = Field(min_length=1)

    @field_validator("method")
    @classmethod
    def _one_makes_up_for_quantization(cls, value: MethodConfig | tuple[MethodConfig, ...]) -> object:
        if isinstance(value, tuple) and sum(method.corrects_quantization for method in value) > 1:
            raise ValueError("what quantising has cost is made up for once: set init: qera for one method only")
        return value

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


def one_run(config: AnyConfig, folder: str | Path | None = None) -> RunConfig:
    """Return a configuration that is of one run, which is in `folder` (None: where it says).

    Raises:
        ConfigError: it is of several.
    """
    parts = config.parts()
    if isinstance(config, JobsConfig) or parts:
        folder = Path(config.out if folder is None else folder)
        names = listed(str(folder / name) for name in parts)
        raise ConfigError(f"{folder} holds runs that were trained side by side; name one of them: {names}")
    return config
