"""The loss of a batch: minus the log-probability of every target, be it a token, a class or a tag.

Language models have their output head at labelled rows only.

In text that is mostly prompt the head is the largest single product of a small model with a large vocabulary, and
almost all of its rows go unread. Here a hook on the head itself keeps the rows whose *next* token is labelled,
so any model saves the work, and its logit scales and soft-capping stay where the model applies them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from peftly.errors import MethodError
from peftly.methods._selection import adapters_of_picked

__all__ = [
    "IGNORED",
    "Logits",
    "class_logits",
    "decoder_logits",
    "head_rows",
    "labelled_logits",
    "read_by",
    "row_logits",
    "row_losses",
    "tag_logits",
    "target_losses",
    "text_positions",
]

IGNORED = -100
"""The label of a token that is not trained, as everywhere in transformers."""

Logits = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""From a model and a batch of `collate` to the logits of every target, (count, choices), and the targets, (count,)."""

_CHUNK_ELEMENTS = 2**20


def labelled_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits at the rows whose next token is labelled, (count, vocabulary), and those tokens, (count,)."""
    following = torch.full_like(batch["labels"], IGNORED)
    following[:, :-1] = batch["labels"][:, 1:]
    rows = following.flatten().ne(IGNORED).nonzero().squeeze(1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs["position_ids"] = text_positions(batch["attention_mask"])
    logits, _ = row_logits(model, rows, inputs, use_cache=False)
    return logits, following.flatten()[rows]


def target_losses(model: nn.Module, batch: Mapping[str, Tensor], logits_of: Logits = labelled_logits) -> Tensor:
    """Return -log p of every target of a batch, row by row, (count,), fp32 (fp64 for a model in fp64).

    Args:
        model: a model, wrapped for data parallelism or not.
        batch: `input_ids`, `attention_mask` and `labels`, each (rows, columns); labels stand in the column of their own
            token and are `IGNORED` where nothing is trained. See `collate` for the labels of other tasks.
        logits_of: what the model's task makes of a batch.

    Without a target there is no loss, and its sum still has a (zero) gradient, as data parallelism needs.
    """
    return row_losses(*logits_of(model, batch))


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


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(logits)[target] of every row, (count, vocabulary) and (count,) -> (count,) in fp32.

    Works through a few rows at a time and keeps nothing but the logits in their own dtype, so that neither the forward
    nor the backward pass holds all logits in fp32.
    """
    return cast(Tensor, _RowLosses.apply(logits, targets.to(logits.device)))  # type: ignore[no-untyped-call]


class _RowLosses(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - onehot(target), from nothing but the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = logits.new_empty(len(targets), dtype=_wide(logits))
        for part in _chunks(logits):
            likely = logits[part].log_softmax(-1, dtype=losses.dtype)
            losses[part] = -likely.gather(1, targets[part, None]).squeeze(1)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            wide = logits[part].softmax(-1, dtype=_wide(logits))
            wide[torch.arange(len(wide), device=wide.device), targets[part]] -= 1
            torch.mul(wide, upstream[part, None], out=gradient[part])
        return gradient, None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor) -> Iterator[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
