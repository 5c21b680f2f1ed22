"""Layers that PEFT adapts where `target_modules` does not name them, by the type of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftly.errors import ConfigError
from peftly.injection import ALL_LINEAR, base_modules
from peftly.peft.names import TaskType

__all__ = ["IA3_FEEDFORWARD", "IA3_TARGETS", "LORA_TARGETS", "target_modules_on"]

Targets = Mapping[str, list[str] | str]


def _by_type(*rows: tuple[list[str] | str, str]) -> Targets:
    return {model_type: targets for targets, model_types in rows for model_type in model_types.split()}


_QV = ["q_proj", "v_proj"]

LORA_TARGETS = _by_type(
    (
        _QV,
        "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3",
    ),
    (["q", "v"], "t5 mt5"),
    (["c_attn"], "gpt2 gpt_bigcode"),
    (["query_key_value"], "bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon"),
    (["q", "v", *_QV], "blip-2"),
    (["query", "value"], "bert roberta xlm-roberta electra layoutlm"),
    (["query_proj", "value_proj"], "deberta-v2"),
    (["in_proj"], "deberta"),
    (["Wqkv"], "mpt"),
    (["c_proj", "c_attn"], "btlm"),
    (["qkv_proj"], "codegen"),
    ([*_QV, "fc1", "fc2"], "phi"),
    (r".*language_model\..*\.(q_proj|v_proj)", "gemma4"),
    (["q_proj", "k_proj", "v_proj", "o_proj"], "nemotron_h"),
    (["key", "value", "receptance", "output"], "rwkv"),
    (["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"], "rwkv7"),
)
"""Target modules of LoRA in PEFT 0.21.2, by model type."""

IA3_TARGETS = _by_type(
    ([*_QV, "down_proj"], "llama4 gemma gemma2 gemma3_text qwen2 qwen3"),
    (["k_proj", "v_proj", "down_proj"], "llama mistral"),
    (["k_proj", "v_proj", "w2"], "mixtral"),
    (["k", "v", "wo"], "t5"),
    (["k", "v", "wi_1"], "mt5"),
    (["c_attn", "mlp.c_proj"], "gpt2 gpt_bigcode"),
    (["query_key_value", "mlp.dense_4h_to_h"], "bloom"),
    (["query_key_value", "dense_4h_to_h"], "gpt_neox RefinedWebModel RefinedWeb falcon"),
    (["key", "value", "output.dense"], "bert roberta"),
    (["key_proj", "value_proj", "output.dense"], "deberta-v2"),
    (["in_proj", "output.dense"], "deberta"),
    (["q_proj", "k_proj", "fc2"], "opt"),
    ([*_QV, "fc_out"], "gptj"),
    ([*_QV, "c_proj"], "gpt_neo"),
    ([*_QV, "fc2"], "bart phi"),
)
"""Target modules of (IA)³ in PEFT 0.21.2, by model type."""

IA3_FEEDFORWARD = _by_type(
    (["down_proj"], "llama llama4 mistral gemma gemma2 gemma3_text qwen2 qwen3"),
    (["w2"], "mixtral"),
    (["wo"], "t5"),
    ([], "mt5"),
    (["mlp.c_proj"], "gpt2 gpt_bigcode"),
    (["mlp.dense_4h_to_h"], "bloom"),
    (["dense_4h_to_h"], "gpt_neox RefinedWebModel RefinedWeb falcon"),
    (["output.dense"], "bert roberta deberta deberta-v2"),
    (["fc2"], "opt bart phi"),
    (["fc_out"], "gptj"),
    (["c_proj"], "gpt_neo"),
)
"""Layers of (IA)³ whose input is scaled, in PEFT 0.21.2, by model type."""

_CLASSIFIERS = ("score", "classifier")


def target_modules_on(
    model: nn.Module,
    targets: Any,
    defaults: Targets,
    task_type: str | None,
    argument: str = "target_modules",
) -> list[str] | str:
    """Return names of layers, or a regular expression, where an argument of PEFT leaves the choice to the model.

    Args:
        model: model that the adapter is for.
        targets: the argument; None: the layers that PEFT has for this type of model.
        defaults: these layers, by type.
        task_type: task, by PEFT's name.
        argument: name of the argument, for messages.

    Raises:
        ConfigError: PEFT has no layers for this type of model.
    """
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return _linear_layers(model, task_type)
    if targets is not None:
        return targets if isinstance(targets, str) else sorted(targets)
    model_type: Any = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in defaults:
        raise ConfigError(
            f"Please specify `{argument}` in `peft_config`: PEFT has none for models of type {model_type!r}"
        )
    return defaults[model_type]


def _linear_layers(model: nn.Module, task_type: str | None) -> list[str]:
    """Return the paths of all linear layers but the output head, as PEFT takes them for "all-linear"."""
    head: nn.Module | None = None
    if isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is None and task_type == TaskType.SEQ_CLS:
            heads = (getattr(model, name, None) for name in _CLASSIFIERS)
            head = next((found for found in heads if found is not None), None)
    return [path for path, layer in base_modules(model) if isinstance(layer, nn.Linear | Conv1D) and layer is not head]
