"""Pooling that a base was trained with, as the files of sentence-transformers tell."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftly.models.base_spec import BaseSpec
from peftly.models.pooled import Pooling

__all__ = ["trained_pooling"]

_FOLDER, _FILE = "1_Pooling", "config.json"


def trained_pooling(base: BaseSpec) -> Pooling | None:
    """Return the pooling with which a base was trained to embed texts; None where its files do not tell.

    Args:
        base: base as `resolve_base` returns it. A base of the Hub may be asked for one small file.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(
            str(base.source),
            _FILE,
            subfolder=_FOLDER,
            local_files_only=base.is_local,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return None
    return _pooling(settings) if isinstance(settings, Mapping) else None


def _pooling(settings: Mapping[str, Any]) -> Pooling | None:
    """Return the pooling in the settings of sentence-transformers, which may name several or another one."""
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if modes == ["pooling_mode_mean_tokens"] or settings.get("pooling_mode") == "mean":
        return "mean"
    return "first" if modes == ["pooling_mode_cls_token"] or settings.get("pooling_mode") == "cls" else None
