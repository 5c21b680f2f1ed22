"""YAML of a configuration, read within limits of size and depth."""

import math
from pathlib import Path
from typing import Any

import yaml

from peftly.errors import ConfigError

__all__ = ["parse_yaml", "read_yaml"]

_MAX_BYTES = 1_000_000
_MAX_VALUES = 10_000
"""Limits of a configuration: its size, and its number of values, where a value counts once for each alias."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is too large, or holds no settings.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}; give a YAML file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; give a YAML file, or flags alone (see peftly train --help)"
        ) from error
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is no configuration: it has more than {_MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: it is not UTF-8 text; save the file as UTF-8") from error
    settings = parse_yaml(text, str(path))
    if settings is None:
        raise ConfigError(f"{path} is empty; it needs at least base, data, method and out")
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} holds a {type(settings).__name__}; expected keys and values, as in `base: smollm2-135m`"
        )
    return settings


def parse_yaml(text: str, name: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: YAML of one document.
        name: name of the text, for error messages.

    Raises:
        ConfigError: the text is not YAML, has a key twice, or exceeds the limits.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > _MAX_VALUES:
            raise ConfigError(f"{name} has more than {_MAX_VALUES:,} values, counted once for each alias")
        return loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line} is not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{name} is not valid YAML: its lists or mappings are nested too deeply") from error
    except Exception as error:  # PyYAML lets pass the errors of the conversions that it calls, of dates for instance
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that refuses a repeated key; plain YAML silently uses its last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _num_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values below a node; infinity for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    return known[id(node)]
