"""Settings of the method of an adapter on disk, which `peftly.json` and `adapter_config.json` both hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftly.adapters.files import CONFIG, METHOD, NOTES, escaped
from peftly.errors import AdapterError
from peftly.methods import METHODS, MethodConfig
from peftly.utils import warn

__all__ = ["has_own_format", "methods_of_peft", "read_method"]

_COMMON_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "settings",
        "task_type",
    }
)
"""Keys of PEFT's configuration that all methods have, and ours of methods that PEFT does not have."""

_OFF: tuple[object, ...] = (None, False, "", [], {})
"""Values of a setting that is off. 0 is among them too, as it equals False."""


def read_method(folder: Path, peft_config: Mapping[str, Any], notes: Mapping[str, Any]) -> MethodConfig:
    """Return the settings of the method: those in the notes, or else those in PEFT's configuration.

    Warns about entries of PEFT's configuration that no method knows.

    Raises:
        AdapterError: a setting is impossible or not supported, or the two disagree.
    """
    candidates = _methods_of_peft(folder, peft_config)
    _warn_about_unknown_keys(folder, peft_config, candidates)
    if METHOD not in notes:
        method = next(iter(candidates.values()))
        saved = peft_config.get("modules_to_save")
        if saved is None or has_own_format(peft_config):
            return method
        return method.model_copy(update={"modules_to_save": tuple(saved)})
    noted = notes[METHOD]
    name = noted.get("name") if isinstance(noted, Mapping) else None
    if not isinstance(name, str) or name not in METHODS:
        raise AdapterError(f"{folder / NOTES} does not describe an adapter: its {METHOD} is {escaped(repr(noted))}")
    if name not in candidates:
        raise _disagreement(folder, "method", name, " or ".join(candidates))
    try:
        method = METHODS[name].config.from_json(noted)
    except ValueError as error:
        raise AdapterError(f"{folder / NOTES} does not describe a {name} adapter: {_reason(error)}") from None
    for setting, value, of_peft in _differences(method, candidates[name], peft_config):
        raise _disagreement(folder, setting, value, of_peft)
    return method


def _warn_about_unknown_keys(folder: Path, peft_config: Mapping[str, Any], candidates: Iterable[str]) -> None:
    known = _COMMON_KEYS.union(*(METHODS[name].adapter.peft_keys for name in candidates))
    # A setting that is off has no effect, whatever it is.
    unknown = sorted(key for key in peft_config if key not in known and peft_config[key] not in _OFF)
    if unknown and not has_own_format(peft_config):
        warn(
            f"{folder / CONFIG} has settings that peftly does not know and leaves out, so its outputs may differ: "
            f"{escaped(', '.join(unknown))}",
            stacklevel=4,
        )


def _differences(
    method: MethodConfig, of_peft: MethodConfig, peft_config: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings on which `peftly.json` and `adapter_config.json` disagree, with both values.

    Args:
        method: settings in `peftly.json`.
        of_peft: settings of the same method in `adapter_config.json`, which may have no field for some of them.
        peft_config: content of `adapter_config.json`.
    """
    if has_own_format(peft_config):
        own, other = method.model_dump(), of_peft.model_dump()
    else:
        own = METHODS[method.name].adapter.peft_settings(method)
        other = {key: peft_config[key] for key in own if key in peft_config}
    yield from ((key, own[key], other[key]) for key in other if own[key] != other[key])


def has_own_format(peft_config: Mapping[str, Any]) -> bool:
    """Return whether `adapter_config.json` holds our settings, with a field for each, because PEFT has no such type."""
    return bool(peft_config["peft_type"].startswith("PEFTLY_"))


def _disagreement(folder: Path, setting: str, noted: object, of_peft: object) -> AdapterError:
    return AdapterError(
        f"{folder / NOTES} and {folder / CONFIG} disagree: by the first, {setting} is {escaped(noted)}, and by the "
        f"second {escaped(of_peft)}; restore the file that was changed, or delete {NOTES} to use the second alone"
    )


def _methods_of_peft(folder: Path, peft_config: Mapping[str, Any]) -> dict[str, MethodConfig]:
    """Return `methods_of_peft`; the errors name the file."""
    try:
        return methods_of_peft(peft_config)
    except AdapterError as error:
        raise AdapterError(f"{folder / CONFIG}{error}") from None


def methods_of_peft(peft_config: Mapping[str, Any]) -> dict[str, MethodConfig]:
    """Return the settings of each method that PEFT's configuration may describe, by the name of the method.

    Raises:
        AdapterError: the configuration is unsound or not supported; the message continues the name of the file.
    """
    peft_type = peft_config["peft_type"]
    known_types = {name: None for method in METHODS.values() for name in method.adapter.peft_types}
    if peft_type not in known_types:
        raise AdapterError(f" is of peft_type {escaped(repr(peft_type))}; peftly reads {', '.join(known_types)}")
    candidates: dict[str, MethodConfig] = {}
    for method in METHODS.values():
        if peft_type not in method.adapter.peft_types:
            continue
        try:
            config = method.adapter.config_from_peft(peft_config)
        except AdapterError as error:
            raise AdapterError(f": {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f" is not a sound {peft_type} configuration: {_reason(error)}") from None
        if config is not None:
            candidates[config.name] = config
    if not candidates:
        raise AdapterError(f" is not a sound {peft_type} configuration: its settings have no name")
    return candidates


def _reason(error: Exception) -> str:
    """Return the objection of a settings class, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return escaped(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return escaped(f"it lacks {error}" if isinstance(error, KeyError) else error)
