"""PEFT's functions over models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.peft.attaching import attach_new
from peftly.peft.config import PeftConfig
from peftly.peft.model import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel
from peftly.peft.state_dict import set_peft_model_state_dict
from peftly.utils import warn

__all__ = [
    "cast_mixed_precision_params",
    "get_peft_model",
    "inject_adapter_in_model",
    "prepare_model_for_kbit_training",
]

ModelT = TypeVar("ModelT", bound=nn.Module)


def get_peft_model(
    model: Any,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> Any:
    """Freeze a model, put a new adapter on it, and return the model, which is a `PeftModel` too from then on.

    The initial values follow torch's global random generator: `torch.manual_seed` decides them.

    Args:
        model: any module that the method supports.
        peft_config: configuration of the adapter.
        adapter_name: name of the adapter.
        mixed: without effect: adapters of several methods may always be on one model.
        autocast_adapter_dtype: without effect: parameters of adapters are in fp32.
        revision: commit, branch or tag of the base, for the configuration.
        low_cpu_mem_usage: without effect.

    Raises:
        ConfigError: peftly does not have a setting.
        MethodError: the model has an adapter already, or cannot carry this one.
    """
    if revision is not None and isinstance(peft_config, PeftConfig):
        if peft_config.revision not in (None, revision):
            warn(f"the revision {peft_config.revision} of the configuration is replaced by {revision}", stacklevel=2)
        peft_config.revision = revision
    peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(getattr(peft_config, "task_type", None), PeftModel)
    return peft_class(model, peft_config, adapter_name)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: ModelT,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> ModelT:
    """Put a new adapter on a model, and return the model without the methods of `PeftModel`.

    Args:
        peft_config: configuration of the adapter.
        model: any module that the method supports.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: without effect.
        state_dict: tensors of the adapter by PEFT's names; None: new ones.

    Raises:
        ConfigError, MethodError: as for `get_peft_model`.
    """
    if isinstance(peft_config, PeftConfig) and peft_config.is_prompt_learning:
        raise MethodError("inject_adapter_in_model is for methods that change layers; use get_peft_model")
    attach_new(model, peft_config, adapter_name)
    if state_dict is not None:
        set_peft_model_state_dict(model, state_dict, adapter_name)
    return model


def prepare_model_for_kbit_training(
    model: ModelT,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> ModelT:
    """Freeze a model and switch gradient checkpointing on, for training an adapter over a quantised base.

    PEFT also converts all parameters in fp16 and bf16 to fp32. That is left out: the parameters of adapters, and their
    products, are in fp32 here anyway, and the base computes in its own dtype, in training as in use, in less memory.

    Args:
        model: a transformers model.
        use_gradient_checkpointing: whether to switch gradient checkpointing on.
        gradient_checkpointing_kwargs: settings of it, as for transformers.
        auto_clear_cache: without effect: no parameter is converted, so no memory becomes free.

    Returns:
        The same model.
    """
    model.requires_grad_(False)
    transformers_model: Any = model
    if use_gradient_checkpointing and hasattr(model, "gradient_checkpointing_enable"):
        transformers_model.enable_input_require_grads()
        settings = gradient_checkpointing_kwargs and dict(gradient_checkpointing_kwargs)
        transformers_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    return model


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the frozen parameters of a model to a dtype, and the trainable ones to fp32.

    Args:
        model: a model with adapters.
        dtype: fp16 or bf16.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.to(torch.float32 if parameter.requires_grad else dtype)
