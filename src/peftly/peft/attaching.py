"""Adapters put on a model by a configuration of PEFT, or from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftly.adapters import attach, attached, check_model, load_adapter, open_adapters, state_of
from peftly.errors import MethodError
from peftly.peft.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from peftly.peft.trainable import require_grad
from peftly.peft.translation import config_of, method_of, tokenizer_for
from peftly.peft.wrapping import Wrapping, is_wrapped, wrapping_of

if TYPE_CHECKING:
    from peftly.methods import Adapter

__all__ = ["attach_new", "check_new", "finish_loading", "load_new", "wrap_new"]


def wrap_new(
    peft_class: type,
    model: Any,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    low_cpu_mem_usage: bool = False,
) -> Any:
    """Attach a new adapter to a model without one, make the model one of PEFT, and return it."""
    check_new(model)
    attach_new(model, peft_config, adapter_name)
    Wrapping(model, peft_class).configs[adapter_name] = peft_config
    if peft_config.inference_mode:
        require_grad(model, [adapter_name], False)
    return model


def attach_new(model: Any, config: PeftConfig, name: str) -> None:
    """Attach a new adapter. Its initial values follow torch's global random generator, as those of PEFT do.

    The layers and dimensions that the configuration left open are set in it.
    """
    _check_config(config)
    method, tokenizer = method_of(config, model), tokenizer_for(config)
    attach(model, method, name=name, tokenizer=tokenizer, seed=int(torch.randint(2**32, (), device="cpu")))
    state_of(model).revision = config.revision or state_of(model).revision
    config.base_model_name_or_path = getattr(model, "name_or_path", None) or config.base_model_name_or_path
    _complete(config, attached(model)[name])
    if getattr(config, "modules_to_save", ()) is None and method.modules_to_save:
        config.modules_to_save = list(method.modules_to_save)  # type: ignore[attr-defined] # those of the task


def _complete(config: PeftConfig, adapter: Adapter) -> None:
    """Set the layers and dimensions that a configuration leaves open to those of its adapter."""
    for key, value in adapter.peft_config().items():
        if getattr(config, key, value) is None:
            setattr(config, key, set(value) if key == "target_modules" else value)


def _check_config(config: object) -> None:
    """Do nothing for a configuration.

    Raises:
        MethodError: the argument is something else, such as a configuration of PEFT itself.
    """
    if not isinstance(config, PeftConfig):
        kind = type(config)
        advice = "import it from peftly.peft" if kind.__module__.startswith("peft.") else "give one, as LoraConfig()"
        raise MethodError(f"{kind.__module__}.{kind.__name__} is no configuration of peftly.peft; {advice}")


def check_new(model: nn.Module) -> None:
    """Refuse an argument that is no model, and a model that has adapters already.

    Raises:
        MethodError: the argument is no model, or the model has adapters.
    """
    check_model(model)
    if is_wrapped(model):
        raise MethodError(
            f"this model has the adapter {', '.join(map(repr, attached(model)))} already; call model.unload() first to "
            "start anew, or model.add_adapter(name, config) or model.load_adapter(folder, name) for another one"
        )
    if isinstance(model, nn.Module) and attached(model):
        raise MethodError("peftly.attach has put an adapter on this model; call peftly.detach(model) first")


def load_new(model: Any, source: str | Path, name: str, *, active: bool) -> dict[str, PeftConfig]:
    """Put adapters from disk or from the Hub on a model, and return their configurations by their names.

    Args:
        model: base of the adapters.
        source: see `peftly.load_adapter`.
        name: name of an adapter that was saved alone; others have their own names.
        active: whether they are active afterwards.

    Raises:
        AdapterError, MethodError: see `peftly.load_adapter`.
    """
    opened = open_adapters(source)
    load_adapter(model, opened, name=name, on=active)
    found = {}
    for one, folder in opened.named(name).items():
        kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(folder.peft_config["peft_type"])
        if kind is None:  # a method that PEFT does not have
            found[one] = config_of(attached(model)[one])
        else:
            known = kind.__dataclass_fields__.keys() & folder.peft_config.keys()
            found[one] = kind(**{key: folder.peft_config[key] for key in known})
            _complete(found[one], attached(model)[one])
    return found


def finish_loading(model: nn.Module, configs: Mapping[str, PeftConfig], *, is_trainable: bool) -> None:
    """Freeze loaded adapters, or let them be trained, and keep their configurations."""
    require_grad(model, configs, is_trainable)
    for name, config in configs.items():
        config.inference_mode = not is_trainable
        wrapping_of(model).configs[name] = config
    if not is_trainable:
        model.eval()
