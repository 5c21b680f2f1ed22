"""A base made ready for adapters that came with a tokenizer, with new tokens, or with settings of generation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from peftly.adapters.adapter_set import AdapterSet
from peftly.adapters.embeddings import vocabulary_in_adapter, warn_of_tokens_without_embeddings
from peftly.adapters.own_tokenizer import generation_settings, own_tokenizer, tokenizer_size, tokenizers_differ
from peftly.adapters.state import state_of
from peftly.adapters.vocabulary import resize_vocabulary, vocabulary_size
from peftly.errors import AdapterError
from peftly.models import TASKS, Base, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["base_for", "finish_base", "keep_base_changes", "tokenizer_for"]


def tokenizer_for(opened: Iterable[AdapterSet], base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer with which adapters came; None: they have the one of their base.

    Args:
        opened: adapters that are to work on one base.
        base: tokenizer of the base, which does not change.

    Raises:
        AdapterError: the tokenizer cannot be opened, or two adapters have different ones.
    """
    chosen: tuple[Path, PreTrainedTokenizerBase, bool] | None = None
    for adapters in opened:
        for folder in adapters.folders.values():
            own = own_tokenizer(folder.path, base)
            if own is None and folder.path != adapters.path:  # saved together, and the tokenizer beside their folders
                own = own_tokenizer(adapters.path, base)
            tokenizer = base if own is None else own
            if own is not None and adapters.chat_template is not None:
                own.chat_template = adapters.chat_template
            if chosen is None:
                chosen = folder.path, tokenizer, own is not None
            elif tokenizers_differ(tokenizer, chosen[1]):
                raise AdapterError(
                    f"{chosen[0]} and {folder.path} have different tokenizers, so no text has the same tokens for "
                    "both; open them one at a time"
                )
    return chosen[1] if chosen is not None and chosen[2] else None


def base_for(loaded: Base, opened: Iterable[AdapterSet]) -> tuple[Base, PreTrainedTokenizerBase | None]:
    """Make a base ready for adapters: give it as many embeddings as they have tokens, and choose the tokenizer.

    Args:
        loaded: base that was opened for these adapters, without adapters. The model is changed in place.
        opened: the adapters.

    Returns:
        The model with the tokenizer of the adapters, and this tokenizer, or None where it is that of the base.

    Raises:
        AdapterError: the adapters have different vocabularies, or the model cannot be resized.
    """
    opened, model = list(opened), loaded.model
    tokenizer = tokenizer_for(opened, loaded.tokenizer)
    folders = [folder for adapters in opened for folder in adapters.folders.values()]
    sizes = {folder.path: size for folder in folders if (size := vocabulary_in_adapter(model, folder)) is not None}
    if len(set(sizes.values())) > 1:
        listed = " and ".join(f"{size} tokens ({path})" for path, size in sizes.items())
        raise AdapterError(f"the adapters have vocabularies of {listed}; open them one at a time")
    rows = vocabulary_size(model)
    if rows is not None:
        needed = next(iter(sizes.values()), max(rows, 0 if tokenizer is None else tokenizer_size(tokenizer)))
        if needed != rows:
            resize_vocabulary(model, needed, folders[0].path)
    if tokenizer is None:
        return loaded, None
    if (task := task_of(model)) is not None and TASKS[task].is_classification:
        # A decoder that classifies finds the end of a text by the pad token.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return Base(model, tokenizer), tokenizer


def finish_base(
    model: Any, names: Iterable[str], opened: Iterable[AdapterSet], tokenizer: Any, rows: int | None = None
) -> None:
    """Use the settings of generation that adapters came with, and warn of tokens without embeddings.

    The adapters are then saved with the tokenizer and these settings, too.

    Args:
        model: model with the adapters.
        names: names of the adapters in the model.
        opened: the adapters.
        tokenizer: their tokenizer; None: they have that of the base.
        rows: number of embeddings in the files of the base, which was resized; None: it was not.
    """
    state, opened = state_of(model), list(opened)
    if tokenizer is not None:
        state.tokenizers.update(dict.fromkeys(names, tokenizer))
    paths = [path for adapters in opened for path in (*(one.path for one in adapters.folders.values()), adapters.path)]
    settings = next(filter(None, map(generation_settings, paths)), None)
    if settings is not None and hasattr(model, "generation_config"):
        state.generation = state.generation or model.generation_config
        model.generation_config = settings
    if rows is not None and not state.embeddings:  # else the loading of the adapter has warned
        warn_of_tokens_without_embeddings(model, opened[0].path, rows, tokenizer)


def keep_base_changes(model: nn.Module) -> None:
    """Keep the embeddings and the settings of generation that came with adapters when these are detached."""
    state = state_of(model)
    state.replaced_rows.clear()
    state.generation = None
