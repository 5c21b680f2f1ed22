"""A LoRA adapter as one GGUF file, which llama.cpp loads beside the GGUF file of the base.

llama.cpp multiplies the update of each layer by alpha / rank, with one alpha for the whole file and the rank of the
layer's own factors. B absorbs the ratio where the scaling of a layer is another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftly.errors import AdapterError, BaseModelError
from peftly.exporting.factors import layer_and_factor, layer_scalings, lora_factors, other_tensors
from peftly.exporting.gguf_tensors import PERMUTED, add_tensor, interleaved, tensor_names
from peftly.exporting.request import Request
from peftly.exporting.saved_adapter import CHAT_TEMPLATE, SavedAdapter, base_notes, open_saved, vocabulary_obstacle
from peftly.methods import METHODS, lora_scaling
from peftly.models import gguf_config, resolve_base

__all__ = ["LORA_DTYPES", "write_gguf_lora"]

LORA_DTYPES = ("f32", "f16", "bf16")
"""Dtypes of the factors, the default first. A factor has rows as short as its rank, which q8_0 cannot pack."""

_ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral"), "llama"),
    **{name: name for name in ("gemma", "gemma2", "granite", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")},
    "gemma3_text": "gemma3",
}
"""GGUF's names of architectures, by the `model_type` of a config."""


def write_gguf_lora(request: Request) -> list[str]:
    """Write a LoRA adapter as a GGUF file. The weights of the base are not opened.

    Args:
        request: source, output folder and dtype.

    Returns:
        Notes for the user, with the command that loads base and adapter.

    Raises:
        AdapterError: llama.cpp cannot apply the adapter.
        BaseModelError: the config of the base cannot be read.
    """
    assert request.dtype is not None
    saved = open_saved(request.source, request.base)
    reason = _obstacle(saved)
    if reason is None:
        config = _base_config(saved)
        tensors = lora_factors(saved.tensors)
        reason = _base_obstacle(config, {layer_and_factor(name)[0] for name in tensors})
    if reason is not None:
        raise AdapterError(f"{saved.folder} cannot be exported as a LoRA file for llama.cpp: {reason}")
    file = f"{request.out.name}-{request.dtype}.gguf"
    _write(request.folder / file, saved, tensors, config, request.dtype, name=request.out.name)
    template = ""
    if saved.chat_template is not None:
        (request.folder / CHAT_TEMPLATE).write_text(saved.chat_template, encoding="utf-8")
        template = f" --jinja --chat-template-file {request.out / CHAT_TEMPLATE}"
    return [
        *base_notes(saved),
        f"BASE.gguf is the base in GGUF's format: peftly export {saved.files.base_name} --to gguf --out BASE",
        f"try it: llama-cli -m BASE.gguf --lora {request.out / file}{template}",
    ]


def _obstacle(saved: SavedAdapter) -> str | None:
    """Return the reason why llama.cpp cannot apply an adapter, and an alternative; None if it can."""
    merge = "merge it into the base instead: peftly export --to gguf"
    kind, peft_config = METHODS[saved.config.name], saved.peft_config
    if peft_config["peft_type"] != "LORA":
        reason = f"it is {saved.config.name}, and llama.cpp takes LoRA only"
        return f"{reason}; {merge}" if kind.mergeable else reason
    if peft_config.get("use_dora"):
        return f"it is a DoRA adapter, which llama.cpp does not support; {merge}"
    if peft_config.get("task_type") not in (None, "CAUSAL_LM") or saved.files.pooling is not None:
        return f"it is for {peft_config.get('task_type')}, and llama.cpp takes LoRA on text generation (CAUSAL_LM)"
    if (others := other_tensors(saved)) is not None:
        return f"{others}, and llama.cpp reads LoRA factors only; {merge}"
    vocabulary = vocabulary_obstacle(saved)
    return None if vocabulary is None else f"{vocabulary}; {merge}"


def _base_config(saved: SavedAdapter) -> Any:
    """Return the config of the base.

    Raises:
        AdapterError: the adapter names no base.
        BaseModelError: the config cannot be read.
    """
    if saved.files.base_name is None:
        raise AdapterError(
            f"{saved.folder} names no base, whose config is needed: write its path or Hub id as "
            "base_model_name_or_path into adapter_config.json"
        )
    base = resolve_base(saved.files.base_name)
    return gguf_config(Path(base.source)) if base.config is None else base.config


def _base_obstacle(config: Any, paths: set[str]) -> str | None:
    """Return the reason why GGUF cannot represent the update of a layer; None if it can.

    Args:
        config: config of the base.
        paths: module paths of the adapted layers.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(sorted(_ARCHITECTURES))
        return f"its base is a {config.model_type}, and a LoRA file is written for {known}"
    names = tensor_names(architecture, config.num_hidden_layers)
    unknown = sorted(path for path in paths if names.get_name(f"{path}.weight", try_suffixes=(".weight",)) is None)
    if unknown:
        return f"{unknown[0]} has no name in a GGUF file of {architecture}"
    # llama.cpp computes the output with the embedding, and takes an update of one for an update of the other.
    vocabulary = [path for path in sorted(paths) if path.endswith(("embed_tokens", "lm_head"))]
    if config.tie_word_embeddings and vocabulary:
        return (
            f"the base ties its embedding and its output head, and llama.cpp cannot adapt {vocabulary[0]} alone; "
            "merge it into the base instead: peftly export --to gguf"
        )
    return None


def _write(file: Path, saved: SavedAdapter, tensors: Mapping[str, Tensor], config: Any, dtype: str, name: str) -> None:
    """Write the factors of an adapter, A (rank, in_features) and B (out_features, rank), to a GGUF file."""
    import gguf

    architecture, peft_config = _ARCHITECTURES[config.model_type], saved.peft_config
    scalings = layer_scalings(peft_config, tensors)
    rslora = bool(peft_config.get("use_rslora"))
    alpha = peft_config["r"] * lora_scaling(peft_config["lora_alpha"], peft_config["r"], rslora=rslora)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, saved.base_name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    names = tensor_names(architecture, config.num_hidden_layers)
    for key in sorted(tensors):
        path, factor = layer_and_factor(key)
        tensor, is_embedding = tensors[key], "lora_embedding" in key
        if factor == "A":
            tensor = tensor.T.contiguous() if is_embedding else tensor
        else:
            applied = alpha / tensor.shape[1]
            if scalings[path] != applied:
                tensor = tensor.float() * (scalings[path] / applied)
            if architecture in PERMUTED:
                tensor = interleaved(tensor, path.rpartition(".")[2], config)
        weight = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        try:
            add_tensor(writer, f"{weight}.lora_{factor.lower()}", tensor, dtype)
        except BaseModelError as error:
            raise AdapterError(str(error)) from None
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
