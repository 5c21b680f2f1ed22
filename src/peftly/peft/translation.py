"""From PEFT's configurations to the settings of methods, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from peftly.adapters import methods_of_peft, peft_config_of
from peftly.errors import AdapterError, ConfigError
from peftly.injection import find_targets, first_matches, matches_path
from peftly.methods import METHODS, MethodConfig
from peftly.peft.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from peftly.peft.names import PromptTuningInit, TaskType
from peftly.utils import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.methods import Adapter

__all__ = ["config_of", "layers_of", "method_of", "tokenizer_for"]


_HEADS = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}
"""Ends of the names of modules of which PEFT trains copies for a task."""


def method_of(config: PeftConfig, model: nn.Module) -> MethodConfig:
    """Return the settings of a method that a configuration of PEFT describes, for a new adapter on a model.

    Layers that the configuration leaves open are those of PEFT for the type of the model. The configuration does not
    change.

    Args:
        config: configuration of a method.
        model: model that the adapter is for.

    Raises:
        ConfigError: peftly does not have a setting, or PEFT has no layers for this type of model.
        MethodError: a regular expression is invalid, or takes too long.
    """
    if config.method_type is None:
        raise ConfigError(
            f"{type(config).__name__} is the configuration of no method; use one of "
            f"{', '.join(kind.__name__ for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values())}"
        )
    fresh = config.fresh_settings()
    method = _without_start(config, model)
    _warn_about_exclusion(config, model)
    return type(method)(**{**method.model_dump(), **fresh})


def layers_of(config: PeftConfig, model: nn.Module) -> set[str] | None:
    """Return the paths of the layers of a model that a configuration chooses; None for a method without such a choice.

    Raises:
        ConfigError, MethodError: as for `method_of`.
    """
    method = _without_start(config, model)
    targets = getattr(method, "target_modules", None)
    classes = getattr(METHODS[method.name].adapter, "layer_classes", (nn.Linear, Conv1D))
    return None if targets is None else set(find_targets(model, targets, classes, warns=False))


def _without_start(config: PeftConfig, model: nn.Module) -> MethodConfig:
    """Return the settings of a method that a configuration describes, but those of `fresh_settings`."""
    peft = json.loads(json.dumps({**config.to_json(), **config.entries_on(model)}))
    try:
        method = next(iter(methods_of_peft(peft).values()))
    except AdapterError as error:
        raise ConfigError(f"{type(config).__name__}{error}") from None
    saved = _modules_to_save(config, model)
    method = method.model_copy(update={"modules_to_save": saved})
    return METHODS[method.name].adapter.config_on(model, method, peft, {})


def _warn_about_exclusion(config: Any, model: nn.Module) -> None:
    """Warn if `exclude_modules` leaves no layer of the model out."""
    excluded = getattr(config, "exclude_modules", None)
    if not excluded:
        return
    paths = [path for path, _ in model.named_modules() if path]
    if isinstance(excluded, str):
        matched = bool(first_matches([excluded], paths, "exclude_modules"))
    else:
        matched = any(matches_path(name, path) for name in excluded for path in paths)
    if not matched:
        warn(f"You have passed exclude_modules={excluded!r} but no modules were excluded; see the names", stacklevel=4)


def _modules_to_save(config: Any, model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the modules of which copies are trained, those of the task included.

    None, with which an adapter trains the head wherever the model has it, stands for a task whose head has another name
    than the ones that PEFT looks for: PEFT leaves it random.
    """
    given = tuple(config.modules_to_save or ())
    if config.task_type not in _HEADS:
        return given
    paths = [path for path, _ in model.named_modules()]
    heads = tuple(name for name in _HEADS[config.task_type] if any(path.endswith(name) for path in paths))
    return tuple(dict.fromkeys((*given, *heads))) if heads or given else None


def tokenizer_for(config: PeftConfig) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a new adapter starts from: that of prompt tuning with a text; None for other adapters.

    Raises:
        OSError: there is no such tokenizer.
    """
    if getattr(config, "prompt_tuning_init", None) != PromptTuningInit.TEXT:
        return None
    arguments: Any = config
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        arguments.tokenizer_name_or_path, **(arguments.tokenizer_kwargs or {})
    )
    return tokenizer


def config_of(adapter: Adapter) -> PeftConfig:
    """Return PEFT's configuration of an adapter on a model, as its file on disk has it.

    An adapter of a method or a task that PEFT does not have gets a plain `PeftConfig`, whose `peft_type` begins with
    PEFTLY_.
    """
    peft = peft_config_of(adapter)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft["peft_type"], PeftConfig)
    known = kind.__dataclass_fields__
    return kind(**{key: value for key, value in peft.items() if key in known})
