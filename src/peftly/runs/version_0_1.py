"""Run folders of version 0.1.0, which named some settings differently."""

from collections.abc import Mapping
from typing import Any

from peftly.adapters import RENAMED_METHOD_SETTINGS, with_current_names

__all__ = ["RENAMED_SETTINGS", "with_current_settings"]

_TRAIN = {
    "accumulation": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "evaluate_every": "eval_steps",
    "save_every": "save_steps",
    "checkpoint_every": "checkpoint_steps",
    "patience": "early_stopping_patience",
    "metric": "metric_for_best_model",
}

RENAMED_SETTINGS = {
    **{f"train.{old}": f"train.{new}" for old, new in _TRAIN.items()},
    **{f"method.{old}": f"method.{new}" for old, new in RENAMED_METHOD_SETTINGS.items()},
}
"""Current names of settings that version 0.1.0 named differently, by their old path in a configuration."""


def with_current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stored `config.yaml` under their current names."""
    current = dict(settings)
    if isinstance(current.get("train"), Mapping):
        current["train"] = with_current_names(current["train"], _TRAIN)
    if isinstance(current.get("data"), Mapping):
        current["data"] = {"add_space": True, **current["data"]}  # version 0.1.0 had no such setting and added spaces
    method = current.get("method")
    if isinstance(method, Mapping):
        current["method"] = with_current_names(method, RENAMED_METHOD_SETTINGS)
    elif isinstance(method, list):
        current["method"] = [with_current_names(entry, RENAMED_METHOD_SETTINGS) for entry in method]
    if isinstance(current.get("jobs"), Mapping):
        current["jobs"] = {name: with_current_settings(job) for name, job in current["jobs"].items()}
    return current
