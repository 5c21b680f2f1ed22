"""A LoRA adapter for vLLM, which serves it beside its base.

vLLM reads `r`, `lora_alpha`, `use_rslora` and the factors. It refuses some adapters that need more, and many of its
versions compute others wrongly: they ignore ranks and alphas by layer. This module rewrites an adapter to one rank and
one alpha where that is possible, and refuses it otherwise.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftly.errors import AdapterError, BaseModelError
from peftly.exporting.factors import layer_and_factor, layer_scalings, lora_factors, other_tensors
from peftly.exporting.prompt_embeddings import embeddings_obstacle
from peftly.exporting.request import Request
from peftly.exporting.saved_adapter import (
    CHAT_TEMPLATE,
    SavedAdapter,
    base_notes,
    open_saved,
    vocabulary_obstacle,
    write_adapter,
    write_own_tokenizer,
)
from peftly.exporting.vllm_models import WITH_LORA, WITHOUT_LORA
from peftly.methods import METHODS, lora_scaling
from peftly.models import base_config

__all__ = ["MAX_RANKS", "serve_command", "smallest_max_rank", "write_vllm"]

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` that every version of vLLM accepts; newer versions accept 1 as well."""

_MERGE = "merge it into the base instead, and serve the merged model: peftly merge"
_TABLE = "https://docs.vllm.ai/en/latest/models/supported_models"


def write_vllm(request: Request) -> list[str]:
    """Write a LoRA adapter that vLLM serves.

    Args:
        request: source and output folder.

    Returns:
        Notes for the user, with the command that serves the adapter.

    Raises:
        AdapterError: vLLM cannot serve the adapter.
    """
    saved = open_saved(request.source, request.base)
    config = _base_config(saved)
    reason = _obstacle(saved) or _base_obstacle(config)
    if reason is None and (obstacle := vocabulary_obstacle(saved)) is not None:
        reason = f"{obstacle}; {_MERGE}"
    if reason is not None:
        raise AdapterError(f"{saved.folder} cannot be exported for vLLM: {reason}")
    tensors = lora_factors(saved.tensors)
    notes = [*base_notes(saved), *_model_notes(saved, config)]
    if len(tensors) < len(saved.tensors):
        notes.append("left out: a copy of the base's embeddings, which vLLM reads from the base")
    notes += _embedding_notes(tensors)
    changed: dict[str, Any] = {}
    if saved.peft_config.get("rank_pattern") or saved.peft_config.get("alpha_pattern"):
        changed, tensors = to_one_rank(saved.peft_config, tensors)
        notes.append(f"layers with different ranks or alphas: padded with zeros to rank {changed['r']}, one alpha")
    peft_config = {
        **saved.peft_config,
        **changed,
        "base_model_name_or_path": saved.base,
        "init_lora_weights": True,
        "inference_mode": True,
        "bias": "none",  # the file holds factors only, whatever the training was asked for
        "modules_to_save": None,
        "target_parameters": None,
        "target_modules": _targets(saved.peft_config, tensors),
    }
    largest = smallest_max_rank(peft_config["r"])
    if largest is None:
        raise AdapterError(
            f"{saved.folder} cannot be exported for vLLM: its rank is {peft_config['r']}, and {MAX_RANKS[-1]} is "
            f"the largest; {_MERGE}"
        )
    name = request.out.name
    command = ["vllm", "serve", saved.base_name, "--enable-lora", "--max-lora-rank", str(largest)]
    serve, here = (shlex.join(_with_paths(command, name, Path(path), saved)) for path in (request.out, "."))
    notes += write_own_tokenizer(request.folder, saved)
    write_adapter(request.folder, peft_config, tensors, _card(saved, name, here))
    return [*notes, f"serve it: {serve}", f"model {name!r} has the adapter, and {saved.base_name!r} is the base alone"]


def serve_command(saved: SavedAdapter, base: str, name: str, source: str) -> str | None:
    """Return the command by which vLLM serves an adapter from its own files; None: it needs an export, or cannot.

    Args:
        saved: the adapter.
        base: name of its base, for vLLM.
        name: name of the model in requests.
        source: Hub id of the adapter.
    """
    peft_config = saved.peft_config
    varies = peft_config.get("rank_pattern") or peft_config.get("alpha_pattern") or saved.has_own_tokenizer
    if varies or _obstacle(saved) or _base_obstacle(_base_config(saved)):
        return None
    largest = smallest_max_rank(peft_config["r"])
    if largest is None:
        return None
    command = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(largest)]
    return shlex.join([*command, "--lora-modules", f"{name}={source}"])


def _with_paths(command: list[str], name: str, folder: Path, saved: SavedAdapter) -> list[str]:
    """Return the command that serves the adapter, with its path and the path of its chat template."""
    template = ["--chat-template", str(folder / CHAT_TEMPLATE)] if saved.chat_template is not None else []
    return [*command, "--lora-modules", f"{name}={folder}", *template]


def smallest_max_rank(rank: int) -> int | None:
    """Return the smallest value of `--max-lora-rank` for an adapter of this rank; None if the rank is too large."""
    return next((largest for largest in MAX_RANKS if largest >= rank), None)


def to_one_rank(
    peft_config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Rewrite the factors of layers with different ranks and alphas so that all have one rank and one alpha.

    Zeros pad the factors to the largest rank, which leaves the products B A as they are. B is multiplied by the ratio
    of its layer's scaling to the common one, and stays bit-identical where the two are equal.

    Args:
        peft_config: content of `adapter_config.json`.
        tensors: A, (rank, in_features), and B, (out_features, rank), of each layer by their names in the file.

    Returns:
        The changed keys of `adapter_config.json`, and the tensors.
    """
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if layer_and_factor(name)[1] == "A")
    rslora = bool(peft_config.get("use_rslora"))
    scaling = lora_scaling(peft_config["lora_alpha"], peft_config["r"], rslora=rslora)
    scalings = layer_scalings(peft_config, tensors)
    padded = {}
    for name, tensor in tensors.items():
        path, factor = layer_and_factor(name)
        dim = 0 if factor == "A" else 1
        shape = list(tensor.shape)
        shape[dim] = rank - shape[dim]
        scaled = tensor * (scalings[path] / scaling) if dim == 1 and scalings[path] != scaling else tensor
        padded[name] = torch.cat([scaled, tensor.new_zeros(shape)], dim)
    changed = {"r": rank, "lora_alpha": scaling * rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return changed, padded


def _obstacle(saved: SavedAdapter) -> str | None:
    """Return the reason why vLLM cannot serve an adapter, and an alternative; None if vLLM can."""
    peft_config, method = saved.peft_config, METHODS[saved.config.name]
    if saved.files.pooling is not None:
        return "its head reads pooled token states, which vLLM does not; train it with head: transformers"
    if peft_config["peft_type"] != "LORA":
        reason = f"it is {saved.config.name}, and vLLM takes LoRA only"
        if method.mergeable:
            return f"{reason}; {_MERGE}"
        return reason if embeddings_obstacle(saved) else f"{reason}; export it --to prompt-embeddings"
    if peft_config.get("task_type") == "SEQ_2_SEQ_LM":
        return f"it is for an encoder-decoder, and vLLM takes LoRA on decoders; {_MERGE}"
    if peft_config.get("use_dora"):
        return f"it is a DoRA adapter, which vLLM does not support; {_MERGE}"
    others = other_tensors(saved)
    return f"{others}, and vLLM reads LoRA factors only; {_MERGE}" if others else None


def _base_config(saved: SavedAdapter) -> Any:
    """Return the config of the base; None where the base has no name or cannot be opened."""
    spec = saved.files.base_name
    try:
        return base_config(spec) if spec else None
    except BaseModelError:
        return None


def _base_obstacle(config: Any) -> str | None:
    """Return the reason why vLLM serves no LoRA adapters for a base; None if it does, or if that is unknown."""
    kind = getattr(config, "model_type", None)
    if kind in WITHOUT_LORA:
        return f"vLLM has no LoRA for {kind} models, by its table of supported models; {_MERGE}"
    if getattr(config, "is_encoder_decoder", False):
        return f"its base is an encoder-decoder, and vLLM takes LoRA on decoders; {_MERGE}"
    return None


def _model_notes(saved: SavedAdapter, config: Any) -> list[str]:
    """Return a note for the user on a base of which it is unknown whether vLLM serves LoRA adapters for it."""
    if config is not None and config.model_type not in WITH_LORA:
        return [
            f"vLLM's table of supported models has no {config.model_type}: it runs such a model, if at all, with the "
            "code of transformers (--model-impl transformers)"
        ]
    if config is None and saved.files.base_name:
        return [f"the base cannot be opened here: look it up in the column LoRA of {_TABLE}"]
    return []


def _embedding_notes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a note for the user on adapted layers outside the transformer blocks, if there are such layers."""
    outside = sorted({layer_and_factor(name)[0] for name in tensors if not re.search(r"\.\d+\.", name)})
    if not outside:
        return []
    return [f"{', '.join(outside)}: vLLM supports LoRA there for some models (Llama), not for others (Qwen, Gemma)"]


def _targets(peft_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the adapted layers; without a list (some versions misread expressions), all paths."""
    targets = peft_config["target_modules"]
    return sorted(targets) if isinstance(targets, list) else sorted({layer_and_factor(name)[0] for name in tensors})


def _card(saved: SavedAdapter, name: str, serve: str) -> str:
    return f"""# A LoRA adapter for {saved.base_name}, to serve with vLLM

Run in this folder:

    {serve}

Requests name the model {name!r}. The base must be the one that the adapter was trained on.
"""
