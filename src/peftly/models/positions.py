"""Number of tokens that a model has positions for."""

from typing import Any

__all__ = ["max_answer_tokens", "max_input_tokens", "max_tokens"]

_TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
"""Names of the modules of position embeddings in transformers' models of text."""


def max_input_tokens(model: Any, num_virtual_tokens: int | None = None) -> int | None:
    """Return the maximum number of tokens of a text that a model reads; None without a maximum.

    A model with a table of position embeddings has a position for each of its rows. Virtual tokens take positions, too,
    and with them the text of a model without a table must fit the number of positions in its config.

    Args:
        model: transformers model.
        num_virtual_tokens: virtual tokens in every text; None: those of the active adapters.
    """
    return _max_tokens(model, num_virtual_tokens, is_answer=False)


def max_answer_tokens(model: Any, num_virtual_tokens: int | None = None) -> int | None:
    """Return the maximum number of tokens that the decoder of an encoder-decoder generates; None without a maximum.

    Args:
        model, num_virtual_tokens: as for `max_input_tokens`.
    """
    return _max_tokens(model, num_virtual_tokens, is_answer=True)


def max_tokens(model: Any, num_virtual_tokens: int | None = None) -> int | None:
    """Return the maximum number of tokens of a text and of an answer, for settings that limit both.

    Args:
        model, num_virtual_tokens: as for `max_input_tokens`.
    """
    limits = [max_input_tokens(model, num_virtual_tokens)]
    if getattr(model.config, "is_encoder_decoder", False):
        limits.append(max_answer_tokens(model, num_virtual_tokens))
    return min((limit for limit in limits if limit is not None), default=None)


def _max_tokens(model: Any, num_virtual_tokens: int | None, *, is_answer: bool) -> int | None:
    config, is_encoder_decoder = model.config, bool(getattr(model.config, "is_encoder_decoder", False))
    limits = [
        _num_positions(module)
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in _TABLES
        and isinstance(getattr(module, "num_embeddings", None), int)
        and (not is_encoder_decoder or ("decoder" in path.split(".")) == is_answer)
    ]
    inserted = num_virtual_tokens
    if inserted is None:
        hooks = getattr(getattr(model, "_peftly", None), "hooks", None)
        only_in_text = is_encoder_decoder and not is_answer
        inserted = 0 if hooks is None else hooks.num_virtual_tokens() if only_in_text else hooks.num_inserted_columns()
    if inserted and not is_encoder_decoder and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    if inserted and isinstance(declared := getattr(config, "max_position_embeddings", None), int):
        limits.append(declared)
    return min(limits) - inserted if limits else None


def _num_positions(table: Any) -> int:
    """Return the number of positions of a table, whose first rows can be for padding."""
    first = getattr(table, "offset", None)
    if first is None:
        first = 0 if table.padding_idx is None else table.padding_idx + 1
    return int(table.num_embeddings) - int(first)
