"""Logits of a model at the positions that have a target, and nowhere else."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peftly.errors import MethodError
from peftly.injection import adapters_of_picked

__all__ = [
    "IGNORED",
    "Logits",
    "class_logits",
    "decoder_logits",
    "head_rows",
    "labelled_logits",
    "read_by",
    "row_logits",
    "tag_logits",
    "text_positions",
]

IGNORED = -100
"""The label of a token that is not trained, as everywhere in transformers."""


Logits = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""From a model and a batch of `collate` to the logits of every target, (count, choices), and the targets, (count,)."""


def labelled_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits at the rows whose next token is labelled, (count, vocabulary), and those tokens, (count,)."""
    following = torch.full_like(batch["labels"], IGNORED)
    following[:, :-1] = batch["labels"][:, 1:]
    rows = following.flatten().ne(IGNORED).nonzero().squeeze(1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs["position_ids"] = text_positions(batch["attention_mask"])
    logits, _ = row_logits(model, rows, inputs, use_cache=False)
    return logits, following.flatten()[rows]


def class_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of a sequence classifier at the rows that have a label, (count, labels), and those labels."""
    labels = batch["labels"][:, 0]
    rows = labels.ne(IGNORED).nonzero().squeeze(1)
    return model(**read_by(model, batch)).logits[rows], labels[rows]


def tag_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of a token classifier at the tokens that have a tag, (count, tags), and those tags."""
    labels = batch["labels"].flatten()
    rows = labels.ne(IGNORED).nonzero().squeeze(1)
    return model(**read_by(model, batch)).logits.flatten(0, 1)[rows], labels[rows]


def decoder_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of an encoder-decoder at the tokens that it is to write, (count, vocabulary), and those tokens.

    The decoder reads them shifted by one, as the model itself does it.
    """
    labels = batch["labels"]
    rows = labels.flatten().ne(IGNORED).nonzero().squeeze(1)
    inputs = read_by(model, batch)
    inputs["decoder_input_ids"] = cast(Any, _bare(model)).prepare_decoder_input_ids_from_labels(labels)
    logits, _ = row_logits(model, rows, inputs, use_cache=False)
    return logits, labels.flatten()[rows]


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def read_by(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a model reads of a batch: no positions, and token types only where it takes them."""
    taken = inspect.signature(_bare(model).forward).parameters
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "token_type_ids" in batch and "token_type_ids" in taken:
        inputs["token_type_ids"] = batch["token_type_ids"]
    return inputs


def row_logits(model: nn.Module, rows: Tensor, inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Any]:
    """Run `model` and return its logits at `rows` only, and its whole output.

    Args:
        model: a language model, wrapped for data parallelism or not.
        rows: (count,) indices into the flattened (rows x columns) of the input.
        inputs: what the model reads; `position_ids` is left out for a model that takes none.
        options: passed to the model as they are.
    """
    bare = _bare(model)
    taken = inspect.signature(bare.forward).parameters
    given = {name: value for name, value in inputs.items() if name != "position_ids" or name in taken}
    with head_rows(bare, rows):
        output = model(**given, **options)
    return output.logits.flatten(0, 1), output


@contextmanager
def head_rows(model: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the output head of `model` see only `rows` of its input, (batch, length, features) -> (count, 1, features).

    Raises:
        MethodError: the model has no output head.
    """
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise MethodError(f"{type(model).__name__} has no output head, so it gives no token a probability")
    chosen = ExitStack()

    def pick(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        chosen.enter_context(adapters_of_picked(model, hidden.shape[0], rows // hidden.shape[1]))
        return hidden.flatten(0, 1).index_select(0, rows.to(hidden.device))[:, None], *args[1:]

    handles = [
        head.register_forward_pre_hook(pick),
        head.register_forward_hook(lambda *_: chosen.close(), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def text_positions(attention_mask: Tensor) -> Tensor:
    """Return the position of every token within its own text, so that padding on the left shifts nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)
