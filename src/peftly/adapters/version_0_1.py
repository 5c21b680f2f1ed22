"""Adapter files of version 0.1.0, whose settings had other names."""

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMED_METHOD_SETTINGS", "with_current_names", "with_current_notes"]

RENAMED_METHOD_SETTINGS = {"place": "position"}
RENAMED_NOTES = {"shape": "row_format"}


def with_current_names(settings: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return settings with the names of today. A name of today that is already there wins."""
    current = {renamed[name]: value for name, value in settings.items() if name in renamed}
    return {**current, **{name: value for name, value in settings.items() if name not in renamed}}


def with_current_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `peftly.json` with the names of today."""
    current = with_current_names(notes, RENAMED_NOTES)
    if isinstance(current.get("method"), Mapping):
        current["method"] = with_current_names(current["method"], RENAMED_METHOD_SETTINGS)
    return current
