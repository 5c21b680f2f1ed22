"""The stacks of a transformers model that read and write text, and the direction in which they attend."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from peftly.injection.blocks import blocks_of
from peftly.injection.weight_uses import called_with, paths_used

__all__ = [
    "Role",
    "calls_blocks_of",
    "embedding_in",
    "family_of",
    "inserts_no_tokens",
    "is_multimodal",
    "role_of",
    "text_stack",
]

Role = Literal["decoder", "encoder", "source", "target"]
"""Kind of a stack: a causal decoder or an encoder alone, or an encoder (source) and its decoder (target) together."""

Family = Literal["decoder", "encoder", "encoder-decoder"]

_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
_MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
_WRITING_ABOUT_IMAGES = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def family_of(config: Any) -> Family:
    """Return the family of models of a config: whether the text is read in both directions, in one, or by two stacks.

    Args:
        config: config of a model; that of a multimodal model has the config of its text in it.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    text = getattr(config, "text_config", None) or config
    types = {config.model_type, text.model_type, text.model_type.removesuffix("_text")}
    if getattr(text, "is_decoder", False):
        return "decoder"
    if getattr(text, "is_causal", None) is False or getattr(text, "use_bidirectional_attention", None) is True:
        return "encoder"
    is_decoder = types & {*_CAUSAL, *_WRITING_ABOUT_IMAGES} and text.model_type not in _MASKED
    return "decoder" if is_decoder else "encoder"


def role_of(model: PreTrainedModel) -> Role:
    """Return the role of the stack that reads the text of a model: as its attention tells, or else as its config."""
    family, stack = family_of(model.config), model.get_decoder()
    if family == "encoder-decoder":
        # T5ForTokenClassification is the encoder alone.
        return "source" if "encoder_hidden_states" in inspect.signature(stack.forward).parameters else "encoder"
    flags = {getattr(module, "is_causal", None) for module in stack.modules()}
    if flags & {True, False}:
        return "decoder" if True in flags else "encoder"
    return family


def text_stack(model: PreTrainedModel, role: Role) -> Any:
    """Return the stack in this role, whose calls take the ids of tokens; None for a model that reads no text there.

    Args:
        model: a transformers model.
        role: role of the stack; see `role_of`.
    """
    candidates: list[Any] = [model.get_decoder()]
    if role in ("source", "encoder"):
        # `get_encoder` returns the model itself where it finds no part with this name.
        encoders = [stack for stack in [model.get_encoder()] if stack is not model]
        candidates = encoders if role == "source" else encoders + candidates
    stack = next((stack for stack in candidates if _takes_ids(stack)), None)
    if (
        stack is not None and stack is model and model.get_output_embeddings() is not None
    ):  # it knows no part of it as its decoder
        return next(
            (part for part in model.children() if isinstance(part, PreTrainedModel) and _takes_ids(part)), model
        )
    return stack


def embedding_in(stack: Any) -> Any:
    """Return the input embedding of a stack or a model; None where there is none, as in models of sounds or images."""
    try:
        return stack.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def is_multimodal(model: PreTrainedModel) -> bool:
    """Return whether a model embeds its inputs of several kinds in front of its stack, which gets no token ids."""
    return not model.config.is_encoder_decoder and getattr(model.config, "text_config", None) is not None


def calls_blocks_of(model: nn.Module, stack: nn.Module) -> bool:
    """Return whether a model calls the blocks of a stack itself (BridgeTower), and never the stack."""
    path = next(path for path, module in model.named_modules() if module is stack)
    lists = [inner for inner, module in stack.named_modules() if isinstance(module, nn.ModuleList)]
    parts = path.split(".") if path else []
    are_blocks_used = False
    for end in range(len(parts)):
        kind: Any = type(model.get_submodule(".".join(parts[:end])))
        used, relative = paths_used(kind), ".".join(parts[end:])
        if relative in used:
            return False
        are_blocks_used = are_blocks_used or any(f"{relative}.{inner}" in used for inner in lists)
    return are_blocks_used


def inserts_no_tokens(model: nn.Module) -> str | None:
    """Return why virtual tokens cannot be inserted into the texts of `model`; None if they can be."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        return f"virtual tokens need a transformers model, and {name} is none"
    stack = text_stack(model, role_of(model))
    if stack is None or not isinstance(embedding_in(stack), nn.Embedding):
        reads = "" if model.main_input_name == "input_ids" else f" and reads {model.main_input_name}"
        return f"virtual tokens need a model with an embedding of token ids (nn.Embedding), and {name} has none{reads}"
    if is_multimodal(model):
        return f"virtual tokens need a stack that reads token ids, and that of {name} reads texts and images embedded"
    if calls_blocks_of(model, stack):
        return f"virtual tokens enter a text stack when it is called, and {name} calls the layers of its stack itself"
    return _stack_takes_no_tokens(stack, name)


def _stack_takes_no_tokens(stack: Any, name: str) -> str | None:
    """Return why virtual tokens cannot be inserted into the calls of a text stack of a model `name`, or None."""
    if hasattr(getattr(stack, "config", None), "pool_q_only") and not hasattr(stack, "decoder"):
        return f"virtual tokens would be pooled with the tokens of a text, of which {name} returns fewer than it reads"
    if hasattr(stack, "ngram"):
        return f"virtual tokens have no place in the streams with which {name} predicts several tokens (ngram)"
    if (table := _second_table(stack)) is not None:
        return f"virtual tokens have no rows in {table}, where {name} looks up ids a second time"
    if argument := next(filter(_BESIDE_TEXT.__contains__, inspect.signature(stack.forward).parameters), None):
        return f"virtual tokens have no place on a page or image, and the text stack of {name} reads one ({argument})"
    if any(_takes_ids(module) for block in blocks_of(stack) for module in block.modules()):
        return (
            f"virtual tokens have ids past the vocabulary, and the layers of {name} look up ids in tables of their own"
        )
    if getattr(stack, "eos_token_id", None) == _LARGEST_ID_ENDS_TEXT:
        return f"virtual tokens have the largest ids, which {name} takes for the end of a text"
    return None


_BESIDE_TEXT = ("bbox", "pixel_values", "image", "images", "visual_embeds", "image_embeds")
"""Arguments of a stack that reads the coordinates of its tokens on a page, or puts images beside them, as GIT does."""

_LARGEST_ID_ENDS_TEXT = 2
"""End token in old configs of CLIP, whose models look for the largest id instead."""


def _second_table(stack: nn.Module) -> str | None:
    """Return the path of an embedding of token ids that is not the input embedding of a stack, or None."""
    kind: Any = type(stack)
    for path in sorted(called_with(kind, "input_ids")):
        module = dict(stack.named_modules()).get(path)
        is_other = isinstance(module, nn.Embedding) and module is not embedding_in(stack)
        # Embeddings of positions take the ids too, for their shape, with more arguments.
        if module is not None and is_other and len(inspect.signature(module.forward).parameters) == 1:
            return path
    return None


def _takes_ids(stack: Any) -> bool:
    return "input_ids" in inspect.signature(stack.forward).parameters
