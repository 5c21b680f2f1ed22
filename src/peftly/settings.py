"""Base class of settings, seeds, and values in messages."""

import difflib
import re
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from peftly.errors import ConfigError
from peftly.setting_names import other_name

__all__ = ["Seed", "Settings", "check_seed", "shortened", "value_problem"]

_NUM_SEEDS = 2**32
"""NumPy takes seeds of 32 bits."""

Seed = Annotated[int, Field(ge=0, lt=_NUM_SEEDS)]
"""A seed in settings."""


def check_seed(seed: object) -> None:
    """Check a seed that is an argument of a function.

    Raises:
        ConfigError: the seed is not a whole number from 0 to 2³² - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < _NUM_SEEDS:
        raise ConfigError(f"seed must be a whole number from 0 to {_NUM_SEEDS - 1}; got {shortened(seed)}")


class Settings(BaseModel):
    """Base class of settings. Immutable; an unknown setting, or a number that is infinite or NaN, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    section: ClassVar[str] = ""
    """Path of these settings in the configuration of a run."""

    def __new__(cls, *_: object, **settings: object) -> Self:
        """Refuse keyword arguments with names of other tools; pydantic checks everything else.

        Raises:
            ConfigError: another tool has such a setting; the message names the setting of peftly.
        """
        for name, value in settings.items():
            if name not in cls.model_fields and (advice := cls._advice(name, value)):
                raise ConfigError(f"{cls.__name__} has no setting {name}; {advice}")
        return super().__new__(cls)

    def __init__(self, **settings: Any) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting does not exist, or has an impossible value.
        """
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(self._first_problem(error)) from None

    # Without this mark pydantic would call `__init__` for settings inside a file too, where strict types and the paths
    # of the settings would be lost.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def _first_problem(cls, error: ValidationError) -> str:
        """Return a line on the first problem of keyword arguments. Unknown names come first."""
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        path = ".".join(map(str, problems[0]["loc"]))
        if problems[0]["type"] == "missing":
            return f"{cls.__name__}: {path} is missing"
        if problems[0]["type"] != "extra_forbidden":
            return f"{cls.__name__}: {value_problem(problems[0], path)}"
        close = difflib.get_close_matches(path, cls.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(cls.model_fields)}"
        return f"{cls.__name__} has no setting {path}; {hint}"

    @classmethod
    def _advice(cls, name: str, value: object) -> str:
        """Return advice for the setting `name` of another tool; an empty text if these settings lack it."""
        other = other_name(name)
        if other is None:
            return ""
        of_class = f"{cls.section}."
        names = [path.removeprefix(of_class) for path in other.settings]
        known = tuple(
            name for name, path in zip(names, other.settings, strict=True) if name in cls.model_fields or name == path
        )
        return other._replace(settings=known).advice(value) if known or not names else ""

    @field_validator("*", mode="before")
    @classmethod
    def _check_plain_value(cls, value: object, info: ValidationInfo) -> object:
        """Refuse values that pydantic would convert, and values that later steps cannot store."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not _has_type(annotation, bool):
            wanted = "text (in YAML, yes and no need quotes)" if _has_type(annotation, str) else "number"
            if literals := _literals(annotation):
                wanted = f"value of {', '.join(map(repr, literals))}"
            raise ValueError(f"give a {wanted}, not a truth value")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("the number has more than 64 bits")
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
            raise ValueError("the text has a NUL character or half of a character")
        # Strict settings take the list of a JSON file for a tuple, but not the list that a validator returns.
        if info.mode == "json" and isinstance(value, list) and _has_type(annotation, tuple):
            return tuple(value)
        return value


def _has_type(annotation: Any, kind: type) -> bool:
    return kind in (annotation, get_origin(annotation)) or any(_has_type(part, kind) for part in get_args(annotation))


def _literals(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a type lists, such as `Literal["none", "all"]`; none for other types."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in _literals(part))


def value_problem(problem: ErrorDetails, path: str) -> str:
    """Return a line on an impossible value.

    Args:
        problem: one error of a validation by pydantic.
        path: path of the setting in the configuration; empty for the whole configuration.
    """
    message = re.sub(r"^(Input|Value error,) ?(should be )?|, unable to parse.*", "", problem["msg"])
    got = shortened(problem["input"])
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{path}: {message}" if got in message or not path else f"{path}: {message}; got {got}"
    return f"{path} must be {message}; got {got}"


def shortened(value: object, length: int = 80) -> str:
    """Return the representation of a value, shortened for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists of thousands of levels
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else f"{text[: length - 1]}…"
