"""Layers that PEFT's configuration names by their weight, in `target_parameters`.

On mixtures of experts PEFT takes some names in `target_modules` for the experts, which are stacked in one tensor: a
LoRA on `gate_proj` of a dense or shared layer would be lost. It takes `path.gate_proj.weight` for this weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import conversion_mapping

__all__ = ["names_of_experts", "with_parameter_targets", "without_parameter_targets"]

_WEIGHT = ".weight"

_NAMES = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}
"""Ends of paths that PEFT takes for the router and the experts, by the architecture whose checkpoints look the same."""

_PATTERNS = ("rank_pattern", "alpha_pattern")


def names_of_experts(model: Any) -> frozenset[str]:
    """Return the ends of paths that PEFT takes for stacked experts of a model, wherever they are; often none."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if conversion_mapping.get_checkpoint_conversion_mapping(model_type) is None:
        return frozenset()
    similar = {**getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {}), "mixtral": "mixtral"}
    return _NAMES.get(similar.get(model_type, ""), frozenset())


def with_parameter_targets(peft_config: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Return a configuration of PEFT's LoRA that names layers by their weights.

    PEFT has no dropout there, and looks ranks and alphas up by the name of the weight.

    Args:
        peft_config: content of `adapter_config.json`.
        paths: paths of these layers, which `target_modules` names too.
    """
    return {
        **peft_config,
        "target_modules": [name for name in peft_config["target_modules"] if name not in paths],
        "target_parameters": [f"{path}{_WEIGHT}" for path in sorted(paths)],
        "lora_dropout": 0.0,
        **{
            key: {**peft_config[key], **{_of_weight(name): value for name, value in peft_config[key].items()}}
            for key in _PATTERNS
        },
    }


def without_parameter_targets(peft_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of PEFT's LoRA with all layers in `target_modules`: the inverse of the function above.

    Dropout is left out, since the file does not say what it was. A configuration with other `target_parameters`, or
    with ranks or alphas that PEFT would not find for them, is returned as it is.
    """
    parameters, modules = peft_config.get("target_parameters"), peft_config.get("target_modules") or []
    patterns = {key: peft_config.get(key) or {} for key in _PATTERNS}
    if not (parameters and _are_names(parameters) and _are_names(modules)):
        return dict(peft_config)
    if not all(name.endswith(_WEIGHT) for name in parameters):
        return dict(peft_config)
    of_modules: dict[str, dict[str, Any]] = {}
    for key, pattern in patterns.items():
        if not isinstance(pattern, Mapping):
            return dict(peft_config)
        of_modules[key] = {name: value for name, value in pattern.items() if _of_weight(name) in pattern}
        if {**of_modules[key], **{_of_weight(name): value for name, value in of_modules[key].items()}} != pattern:
            return dict(peft_config)
    paths = [name.removesuffix(_WEIGHT) for name in parameters]
    plain = {**peft_config, **of_modules, "target_modules": sorted({*modules, *paths})}
    return {key: value for key, value in plain.items() if key != "lora_dropout"}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _of_weight(pattern: str) -> str:
    """Return the regular expression for the weight of each module that a regular expression matches."""
    return rf"(?:{pattern})\.weight"
