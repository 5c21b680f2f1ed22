"""Settings in the files of PEFT: all its versions, and tools that write such files.

A key of `adapter_config.json` is read or changes no output (`..._KEYS`), or names a computation that peftly does not
have, so that the adapter is refused. Other keys are unknown, and a warning names them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import AdapterError, MethodError
from peftly.injection import base_modules, first_matches

__all__ = [
    "LAYER_KEYS",
    "LORA_KEYS",
    "PROMPT_KEYS",
    "check_layer_choice",
    "check_parameter_targets",
    "lora_settings",
    "module_names",
    "peft_targets",
]

LAYER_KEYS = frozenset({"exclude_modules", "fan_in_fan_out", "target_modules"})
"""Keys of methods that change layers."""

LORA_KEYS = LAYER_KEYS | {
    "alpha_pattern",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "merge_weights",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "runtime_config",
    "target_parameters",
    "use_dora",
    "use_rslora",
    "velora_config",
}
"""Keys of LoRA and DoRA."""

PROMPT_KEYS = frozenset(
    {
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
        "init_weights",
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "prefix_projection",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "token_dim",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
"""Keys of soft prompts and prefixes."""

_OTHER_COMPUTATIONS = (
    "alora_invocation_tokens",
    "arrow_config",
    "enable_lora",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Keys of LoRA that name another computation, if their value is neither false nor empty."""

_INITS_THAT_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of values of PEFT's `init_lora_weights` for which the factors belong to changed weights of the base."""

_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""Other values of `init_lora_weights`, for which the base does not change."""

_MAX_DROPOUT = math.nextafter(1.0, 0.0)

_LAYER_NAME = re.compile(r"[\w.]+")


def lora_settings(peft: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of LoRA or DoRA in an `adapter_config.json`, by our names.

    Raises:
        AdapterError: the file names another computation than that of LoRA, or an initialisation that changes the base.
    """
    unsupported = [key for key in _OTHER_COMPUTATIONS if peft.get(key)]
    if not _are_layers(peft.get("target_parameters"), peft.get("target_modules")):
        raise AdapterError(
            f"target_parameters={peft['target_parameters']!r} are not all weights of layers in target_modules, and "
            "peftly adapts no others: name linear layers in target_modules, and leave target_parameters out"
        )
    if unsupported:
        raise AdapterError(f"this LoRA adapter uses {', '.join(unsupported)}, which peftly cannot read")
    check_layer_choice(peft)
    _check_init(peft.get("init_lora_weights"))
    dropout = peft.get("lora_dropout", 0.0)
    return {
        "rank": peft.get("r", 8),
        "alpha": peft.get("lora_alpha", 8),
        "dropout": _MAX_DROPOUT if dropout == 1 and dropout is not True else dropout,
        "target_modules": module_names(peft, "target_modules"),
        "bias": peft.get("bias", "none"),
        "rslora": False if peft.get("use_rslora") is None else peft["use_rslora"],
        "rank_pattern": peft.get("rank_pattern") or {},
        "alpha_pattern": peft.get("alpha_pattern") or {},
    }


def _are_layers(parameters: Any, modules: Any) -> bool:
    """Return whether parameters are weights of layers in `target_modules`, to which `AdapterFolder` adds these."""
    if not parameters:
        return True
    is_listed = isinstance(modules, list) and _are(str, parameters)
    return is_listed and all(
        name.endswith(".weight") and name.removesuffix(".weight") in modules for name in parameters
    )


def _check_init(init: object) -> None:
    if not isinstance(init, str):
        return
    if init.lower().startswith(_INITS_THAT_CHANGE_BASE):
        raise AdapterError(
            f"this LoRA adapter has init_lora_weights={init!r}, with which PEFT changes the base when it trains or "
            "loads it; save it again with PEFT's path_initial_model_for_weight_conversion"
        )
    if init.lower() not in _INITS:
        raise AdapterError(
            f"this LoRA adapter has init_lora_weights={init!r}, which peftly does not know: it may change the base; "
            f"peftly reads true, false, {', '.join(_INITS)}"
        )


def check_layer_choice(peft: Mapping[str, Any]) -> None:
    """Do nothing if the entries about the choice of layers, besides `target_modules`, have sound types.

    Raises:
        AdapterError: an entry has another type.
    """
    excluded, indices = peft.get("exclude_modules"), peft.get("layers_to_transform")
    if not (excluded is None or isinstance(excluded, str) or _are(str, excluded)):
        raise AdapterError(f"exclude_modules should be names or a regular expression, and is {excluded!r}")
    if not (indices is None or _are(int, [indices]) or _are(int, indices)):
        raise AdapterError(f"layers_to_transform should be indices of layers, and is {indices!r}")


def _are(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def module_names(peft: Mapping[str, Any], key: str) -> Any:
    """Return names of modules in PEFT's configuration, sorted, since PEFT stores a set; a regular expression as it is.

    Args:
        peft: content of `adapter_config.json`.
        key: name of the entry; a missing one is an empty list.
    """
    names = peft.get(key)
    return sorted(names, key=str) if isinstance(names, list) else [] if names is None else names


def check_parameter_targets(model: nn.Module, peft: Mapping[str, Any]) -> None:
    """Do nothing if the layers in `target_parameters` of PEFT's configuration have weights as those of `nn.Linear`.

    Raises:
        MethodError: a weight is stored transposed, and PEFT's update is not.
    """
    names = frozenset(name.removesuffix(".weight") for name in peft["target_parameters"])
    for path, layer in base_modules(model):
        if isinstance(layer, Conv1D) and _ends_with(path, names):
            raise MethodError(f"target_parameters names {path}.weight, which is transposed: peftly cannot read that")


def peft_targets(
    model: nn.Module,
    classes: tuple[type[nn.Module], ...],
    peft: Mapping[str, Any],
    saved: Collection[str],
    in_file: Collection[str],
) -> list[str] | None:
    """Return the layers of a model that PEFT's configuration selects by more than `target_modules`.

    Args:
        model: model that the adapter is attached to.
        classes: classes of layers that the method supports.
        peft: content of `adapter_config.json`.
        saved: names of the modules of which the file holds copies; PEFT changes no layer in them.
        in_file: paths of the layers that the file has tensors for. They are the target layers of a file without
            `target_modules`, for which PEFT has a list of names for each class of models.

    Returns:
        Paths of the layers; None where `target_modules` alone selects the layers.

    Raises:
        AdapterError: an entry is unsound.
        MethodError: a regular expression in the file is invalid, or takes too long.
    """
    targets, indices = peft.get("target_modules"), peft.get("layers_to_transform")
    excluded = module_names(peft, "exclude_modules")
    if targets and not excluded and not saved and indices in (None, []):
        return None
    paths = [path for path, layer in base_modules(model) if isinstance(layer, classes)]
    if not targets:
        chosen = [path for path in paths if path in in_file]
    elif isinstance(targets, str):
        chosen = list(first_matches([targets], paths, "target_modules"))
    else:
        chosen = [path for path in paths if _ends_with(path, frozenset(targets))]
    if excluded:
        left_out = {path for path in chosen if _ends_with(path, excluded)} if isinstance(excluded, list) else set()
        left_out |= set(first_matches([excluded], chosen, "exclude_modules")) if isinstance(excluded, str) else set()
        chosen = [path for path in chosen if path not in left_out]
    chosen = [path for path in chosen if not any(f".{name}." in f".{path}." for name in saved)]
    if indices not in (None, []):
        patterns = _layer_names(peft)
        wanted = indices if isinstance(indices, list) else [indices]
        chosen = [path for path in chosen if path in (targets or ()) or _layer_index(path, patterns) in wanted]
    return chosen


def _ends_with(path: str, names: Collection[Any]) -> bool:
    """Return whether one of the names is a path or an end of it, as `find_targets` reads names."""
    ends = (path[start:] for start in (0, *(dot.end() for dot in re.finditer(r"\.", path))))
    return any(end in names for end in ends)


def _layer_names(peft: Mapping[str, Any]) -> list[str]:
    """Return the names in `layers_pattern`, of the list of layers that `layers_to_transform` counts; often empty."""
    names = peft.get("layers_pattern") or []
    names = names if isinstance(names, list) else [names]
    odd = [name for name in names if not (isinstance(name, str) and _LAYER_NAME.fullmatch(name))]
    if odd:
        raise AdapterError(f"layers_pattern should be names of a list of layers, and has {odd[0]!r}")
    return list(names)


def _layer_index(path: str, names: Collection[str]) -> int | None:
    """Return the index of the layer of a path, as PEFT finds it: the first number, behind one of the names if any."""
    if not names:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", path)
        return None if match is None else int(match[1])
    matches = (re.match(rf"(?:.*?\.)?{re.escape(name)}\.(\d+)\.", path) for name in names)
    return next((int(match[1]) for match in matches if match is not None), None)
