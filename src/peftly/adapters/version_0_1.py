"""Names in the files of version 0.1.0 that have been renamed since."""

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMED_METHOD_SETTINGS", "with_current_names", "with_current_notes"]

RENAMED_METHOD_SETTINGS = {"place": "position"}
"""Settings of methods: name in version 0.1.0 -> current name."""

_RENAMED_NOTES = {"shape": "row_format"}


def with_current_names(settings: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return settings by their current names.

    Args:
        settings: values by current or former names; the value of a current name wins.
        renamed: former name -> current name.
    """
    current = {renamed[name]: value for name, value in settings.items() if name in renamed}
    return {**current, **{name: value for name, value in settings.items() if name not in renamed}}


def with_current_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `peftly.json` by its current names."""
    current = with_current_names(notes, _RENAMED_NOTES)
    if isinstance(current.get("method"), Mapping):
        current["method"] = with_current_names(current["method"], RENAMED_METHOD_SETTINGS)
    return current
