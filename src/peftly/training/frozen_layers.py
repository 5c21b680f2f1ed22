"""Cache of the outputs of frozen lower layers, for every training example.

Where only upper layers or only a head are trained, the output of the layers below is the same in every epoch. It is
computed when an example comes for the first time; later forward passes begin above the frozen layers.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftly.adapters import num_virtual_tokens_of
from peftly.data import EncodedExamples, input_lengths
from peftly.injection import LAYER_ADAPTERS, blocks_of, current_packing

if TYPE_CHECKING:
    from peftly.data import EncodedExample

__all__ = ["FrozenLayers", "frozen_layers", "stored_bytes"]

MEMORY_BYTES = 2**30
"""Hidden states of more bytes than this are stored in a file."""

FREE_DISK_BYTES = 2**30
"""Bytes that a file of hidden states leaves free on its disk."""


def frozen_layers(model: Any) -> list[Any]:
    """Return the blocks of a model's stack below the first trained one.

    The list is empty where the output of a block may not be all that the next block depends on, or may not have one
    column for each token of the text: in encoder-decoders, with virtual tokens, where blocks are called several times,
    and where the forward of a block is replaced.
    """
    if model.config.is_encoder_decoder or num_virtual_tokens_of(model):
        return []
    stack = model.get_decoder()
    blocks = blocks_of(stack)
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not blocks or len(blocks) != count:
        return []
    above = {id(parameter) for part in (*blocks, *_above(stack, blocks[0])) for parameter in part.parameters()}
    if any(parameter.requires_grad and id(parameter) not in above for parameter in stack.parameters()):
        return []  # an embedding, a prefix
    trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    frozen = blocks[: trained.index(True) if True in trained else len(blocks)]
    return [] if any("forward" in vars(block) for block in frozen) else frozen


def _above(stack: nn.Module, block: nn.Module) -> list[nn.Module]:
    """Return the parts of a stack that come after its blocks: a norm, a pooler."""
    parts = dict(stack.named_children())
    parts.pop(LAYER_ADAPTERS, None)
    holds_block = [any(module is block for module in part.modules()) for part in parts.values()]
    return list(parts.values())[holds_block.index(True) + 1 :]


class _StatesStoredError(Exception):
    """The hidden states are stored; the rest of the forward pass is not needed."""


class FrozenLayers:
    """Hidden states of the training examples between the frozen blocks and the blocks above.

    Attributes:
        blocks: frozen blocks; empty: nothing is cached.
        states: hidden states of all examples, (num_tokens, width); None before the first one.
        folder: folder of the file that holds `states`; None: they are in memory.
    """

    def __init__(self, blocks: Sequence[Any], splits: Sequence[Sequence[EncodedExample]]) -> None:
        """Prepare an empty cache.

        Args:
            blocks: blocks below all training; see `frozen_layers`.
            splits: training examples of each job.
        """
        self.blocks = list(blocks)
        self.states: Tensor | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self._starts = array("q", [0])  # of each example in `states`
        self._first_numbers: dict[int, int] = {}  # of the examples of a split, by the `id` of the split
        self._numbers: dict[int, int] = {}  # of other examples, by the `id` of the example
        for split in splits if blocks else ():
            if isinstance(split, EncodedExamples):
                self._first_numbers[id(split)] = len(self._starts) - 1
            else:
                self._numbers.update(
                    (id(example), number) for number, example in enumerate(split, len(self._starts) - 1)
                )
            for length in input_lengths(split):
                self._starts.append(self._starts[-1] + length)
        self._is_stored = bytearray(len(self._starts) - 1)
        self._stops_after_storing = False
        self._other_outputs: tuple[None, ...] | None = None  # of a block; None: its output is no tuple

    def _number(self, example: EncodedExample) -> int:
        """Return the number of an example among those of all jobs."""
        if example.position is None:
            return self._numbers[id(example)]
        split, index = example.position
        return self._first_numbers[split] + index

    def _slice(self, example: EncodedExample) -> slice:
        """Return the slice of `states` for an example."""
        number = self._number(example)
        return slice(self._starts[number], self._starts[number + 1])

    def _are_stored(self, examples: Sequence[EncodedExample]) -> bool:
        return all(self._is_stored[self._number(example)] for example in examples)

    @contextmanager
    def use(self, examples: Sequence[EncodedExample]) -> Iterator[None]:
        """Read the states of a batch if all of them are stored, else store them, during a forward pass of the model.

        Args:
            examples: examples of the batch, packed or padded on the right.
        """
        if not self.blocks or not examples:  # a process without examples takes part with an example of another one
            yield
            return
        with ExitStack() as restore:
            if self._are_stored(examples):
                for block in self.blocks:
                    block.forward = self._skip
                    restore.callback(vars(block).pop, "forward")
                self.blocks[-1].forward = partial(self._read, examples)
            else:
                handle = self.blocks[-1].register_forward_hook(lambda *call: self._store(examples, call[-1]))
                restore.callback(handle.remove)
            yield

    def store(self, examples: Sequence[EncodedExample], forward: Callable[[], Any]) -> None:
        """Store the states of a batch, unless they are stored; `forward` ends after the frozen blocks.

        Args:
            examples: examples of the batch.
            forward: forward pass of the model within `use(examples)`.
        """
        if not self.blocks or self._are_stored(examples):
            return
        self._stops_after_storing = True
        try:
            forward()
        except _StatesStoredError:
            pass
        finally:
            self._stops_after_storing = False

    def discard(self, examples: Sequence[EncodedExample]) -> None:
        """Forget the states of these examples, which come again in other batches."""
        for example in examples if self.blocks else ():
            self._is_stored[self._number(example)] = False

    def discard_all(self) -> None:
        """Forget the states of all examples."""
        self._is_stored = bytearray(len(self._is_stored))

    def _store(self, examples: Sequence[EncodedExample], output: Any) -> None:
        """Store the output of the last frozen block."""
        states: Tensor
        states, *others = output if isinstance(output, tuple) else (output,)
        self._other_outputs = tuple(others) if isinstance(output, tuple) else None
        if self.states is None and states.ndim == 3 and all(other is None for other in others):
            self.states = self._allocate(states)
        if self.states is None:
            self.blocks = []
            return
        for example, indices in zip(examples, _token_indices(examples, states), strict=True):
            self.states[self._slice(example)] = states.detach().flatten(0, 1)[indices].cpu()
            self._is_stored[self._number(example)] = True
        if self._stops_after_storing:
            raise _StatesStoredError

    def _skip(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Replace the forward of a frozen block: return the input."""
        return hidden_states if self._other_outputs is None else (hidden_states, *self._other_outputs)

    def _read(self, examples: Sequence[EncodedExample], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Replace the forward of the last frozen block: return the stored states, in the layout of this batch."""
        assert self.states is not None
        states = torch.zeros_like(hidden_states)
        flat = states.view(-1, states.shape[-1])
        for example, indices in zip(examples, _token_indices(examples, states), strict=True):
            flat[indices] = self.states[self._slice(example)].to(states.device)
        return self._skip(states)

    def _allocate(self, like: Tensor) -> Tensor | None:
        """Return a tensor for the states of all examples, in memory or in a file; None if the disk is too full."""
        shape = (self._starts[-1], like.shape[-1])
        size = math.prod(shape) * like.element_size()
        if size <= MEMORY_BYTES:
            return torch.empty(shape, dtype=like.dtype)
        if shutil.disk_usage(tempfile.gettempdir()).free < size + FREE_DISK_BYTES:
            return None
        self.folder = tempfile.TemporaryDirectory(prefix="peftly-states-")
        file = str(Path(self.folder.name) / "states")
        return torch.from_file(file, shared=True, size=math.prod(shape), dtype=like.dtype).view(shape)


def stored_bytes(model: Any, examples: Sequence[EncodedExample]) -> int:
    """Return the memory that the hidden states of these examples take; 0 if nothing is cached, or it is in a file."""
    if not frozen_layers(model):
        return 0
    size = sum(input_lengths(examples)) * int(model.config.get_text_config().hidden_size) * model.dtype.itemsize
    return size if size <= MEMORY_BYTES else 0


def _token_indices(examples: Sequence[EncodedExample], states: Tensor) -> list[Tensor]:
    """Return the indices of each example's tokens in the flattened hidden states of the present forward pass.

    Args:
        examples: examples of the batch.
        states: hidden states, (1, columns, width) of a packed batch or (batch, length, width).
    """
    packing = current_packing()
    if packing is not None:
        return [indices.to(states.device) for indices in packing.token_indices()]
    return [
        torch.arange(len(example.input_ids), device=states.device) + number * states.shape[1]
        for number, example in enumerate(examples)
    ]
