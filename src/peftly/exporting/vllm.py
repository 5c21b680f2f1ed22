"""A LoRA adapter as vLLM takes it beside its base, by the rules that vLLM's own loader has for one.

vLLM reads `r`, `lora_alpha`, `use_rslora` and the factors; of an adapter that needs more it refuses some and, in many
of its versions, runs others wrongly (ranks and alphas by layer were ignored for long). So what can be said in these
terms is rewritten, and the rest is refused here.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftly.errors import AdapterError
from peftly.exporting._request import Request, SavedAdapter, base_notes, open_saved, write_adapter
from peftly.exporting.prompt_embeddings import why_no_embeddings
from peftly.methods import METHODS, by_pattern, lora_scaling

__all__ = ["MAX_RANKS", "smallest_max_rank", "write_vllm"]

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be. Newer versions know 1 as well, which older ones refuse."""

_FACTOR = re.compile(r"base_model\.model\.(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
_BASE_COPY = re.compile(r".*\.base_layer\.weight")


def write_vllm(request: Request) -> list[str]:
    """Write a LoRA adapter that vLLM serves, and return how.

    Raises:
        AdapterError: vLLM cannot do what it does.
    """
    saved = open_saved(request.source)
    reason = _why_not(saved)
    if reason is not None:
        raise AdapterError(f"{saved.folder} cannot be exported for vLLM: {reason}")
    tensors = {name: tensor for name, tensor in saved.tensors.items() if not _BASE_COPY.fullmatch(name)}
    notes = base_notes(saved)
    if len(tensors) < len(saved.tensors):
        notes.append("left out: a copy of the base's own embeddings, which vLLM has from the base")
    notes += _about_embeddings(tensors)
    changed: dict[str, Any] = {}
    if saved.peft.get("rank_pattern") or saved.peft.get("alpha_pattern"):
        changed, tensors = one_rank(saved.peft, tensors)
        notes.append(f"layers with ranks or alphas of their own: padded with zeros to rank {changed['r']}, one alpha")
    peft = {
        **saved.peft,
        **changed,
        "base_model_name_or_path": saved.base,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": _targets(saved.peft, tensors),
    }
    largest = smallest_max_rank(peft["r"])
    if largest is None:
        raise AdapterError(
            f"{saved.folder} cannot be exported for vLLM: its rank is {peft['r']}, and {MAX_RANKS[-1]} is the most; "
            "merge it instead: peftly merge"
        )
    name = request.out.name
    command = ["vllm", "serve", saved.base_name, "--enable-lora", "--max-lora-rank", str(largest)]
    serve, here = (shlex.join([*command, "--lora-modules", f"{name}={place}"]) for place in (request.out, "."))
    write_adapter(request.folder, peft, tensors, _card(saved, name, here))
    return [*notes, f"serve it: {serve}", f"model {name!r} has the adapter, and {saved.base_name!r} has not"]


def smallest_max_rank(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` that has room for an adapter of this rank; None if none has."""
    return next((largest for largest in MAX_RANKS if largest >= rank), None)


def one_rank(peft: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write factors with ranks and alphas of their own so that one rank and one alpha hold for all.

    Factors are padded with zeros, which changes nothing; B takes up what a layer's scaling differs by from that of the
    others, and stays bit for bit where it does not.

    Returns:
        The keys of `adapter_config.json` that differ, and the tensors.
    """
    rslora = bool(peft.get("use_rslora"))
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if _place(name)[1] == "A")
    scaling = lora_scaling(peft["lora_alpha"], peft["r"], rslora=rslora)
    padded = {}
    for name, tensor in tensors.items():
        path, letter = _place(name)
        own_rank = by_pattern(peft.get("rank_pattern") or {}, path, peft["r"])
        own_alpha = by_pattern(peft.get("alpha_pattern") or {}, path, peft["lora_alpha"])
        own = lora_scaling(own_alpha, own_rank, rslora=rslora)
        dim = 0 if letter == "A" else 1
        shape = list(tensor.shape)
        shape[dim] = rank - shape[dim]
        scaled = tensor * (own / scaling) if dim == 1 and own != scaling else tensor
        padded[name] = torch.cat([scaled, tensor.new_zeros(shape)], dim)
    changed = {"r": rank, "lora_alpha": scaling * rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    return changed, padded


def _why_not(saved: SavedAdapter) -> str | None:
    """Return what of an adapter vLLM has no room for, and what to do; None if it takes it."""
    merge = "merge it into the base instead, and serve that: peftly merge"
    peft, method = saved.peft, METHODS[saved.config.name]
    if peft["peft_type"] != "LORA":
        reason = f"it is {saved.config.name}, and vLLM takes LoRA only"
        if method.mergeable:
            return f"{reason}; {merge}"
        return reason if why_no_embeddings(saved) else f"{reason}; export it --to prompt-embeddings"
    if peft.get("task_type") == "SEQ_2_SEQ_LM":
        return f"it is for an encoder-decoder, and vLLM takes LoRA on decoders; {merge}"
    if peft.get("use_dora"):
        return f"it is a DoRA, which vLLM does not do; {merge}"
    if peft.get("modules_to_save"):
        kept = ", ".join(peft["modules_to_save"])
        return f"it keeps trained copies of whole modules (modules_to_save: {kept}), which vLLM does not read; {merge}"
    if peft.get("bias", "none") != "none":
        return f"it trains biases (bias: {peft['bias']}), which vLLM does not read; {merge}"
    unknown = [name for name in saved.tensors if not (_FACTOR.fullmatch(name) or _BASE_COPY.fullmatch(name))]
    if unknown:
        return f"{unknown[0]} is no factor of a LoRA, and vLLM reads nothing else; {merge}"
    return None


def _about_embeddings(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what to know where layers outside the blocks are changed."""
    outside = sorted({_place(name)[0] for name in tensors if not re.search(r"\.\d+\.", name)})
    if not outside:
        return []
    return [f"{', '.join(outside)}: vLLM takes LoRA there for some models (Llama), not for others (Qwen, Gemma)"]


def _place(name: str) -> tuple[str, str]:
    """Return the layer of a factor, and whether it is A or B."""
    match = _FACTOR.fullmatch(name)
    assert match is not None
    return match[1], match[2] or match[3]


def _targets(peft: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers; in place of an expression, which some versions take apart wrongly, all paths."""
    targets = peft["target_modules"]
    return sorted({_place(name)[0] for name in tensors}) if isinstance(targets, str) else sorted(targets)


def _card(saved: SavedAdapter, name: str, serve: str) -> str:
    return f"""# A LoRA adapter for {saved.base_name}, as vLLM serves it

In this folder:

    {serve}

and then ask for the model {name!r}. The base must be the one that the adapter was trained on.
"""
