"""What leaves the frozen lower layers of a base, kept for every training row and read again in later epochs.

Where only upper layers, or only a head, are trained, what the layers below make of a row is the same in every epoch.
It is computed when the row comes for the first time; from then on a pass begins above.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftly.adapters import num_virtual_tokens_of
from peftly.injection import LAYER_ADAPTERS, blocks_of, packed_token_indices

if TYPE_CHECKING:
    from peftly.data import EncodedExample

__all__ = ["FrozenLayers", "frozen_layers"]

MEMORY_BYTES = 2**30
"""States of more bytes than this are kept in a file."""

SPARED_DISK = 2**30
"""What a file of states leaves free on its disk."""


def frozen_layers(model: Any) -> list[Any]:
    """Return the blocks of a model's stack from the first up to where something is trained; empty if there are none.

    Empty also where what a block gives may not be all that goes on from it, or not by the words of the text: in
    encoder-decoders, with virtual tokens, where a block is called several times, or not as it is.
    """
    if model.config.is_encoder_decoder or num_virtual_tokens_of(model):
        return []
    body = model.get_decoder()
    blocks = blocks_of(body)
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not blocks or len(blocks) != count:
        return []
    known = {id(parameter) for part in (*blocks, *_above(body, blocks[0])) for parameter in part.parameters()}
    if any(parameter.requires_grad and id(parameter) not in known for parameter in body.parameters()):
        return []  # an embedding, a prefix
    trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    frozen = blocks[: trained.index(True) if True in trained else len(blocks)]
    return [] if any("forward" in vars(block) for block in frozen) else frozen


def _above(body: nn.Module, block: nn.Module) -> list[nn.Module]:
    """Return the parts of a stack that come after its blocks: a norm, a pooler."""
    parts = dict(body.named_children())
    parts.pop(LAYER_ADAPTERS, None)
    holds = [any(one is block for one in part.modules()) for part in parts.values()]
    return list(parts.values())[holds.index(True) + 1 :]


class _LearnedError(Exception):
    """The rest of a forward pass is not needed."""


class FrozenLayers:
    """States of training rows between the frozen blocks and what comes next."""

    def __init__(self, blocks: Sequence[Any], rows: Sequence[EncodedExample]) -> None:
        """Get ready.

        Args:
            blocks: see `frozen_layers`.
            rows: all training rows.
        """
        self.blocks = list(blocks)
        ends = [0, *accumulate(len(row.input_ids) for row in rows)]
        # Of the lines of `states`; by identity, as rows are not hashable.
        self.lines = {id(row): slice(start, end) for row, (start, end) in zip(rows, pairwise(ends), strict=True)}
        self.count = ends[-1]
        self.known: set[int] = set()
        self.states: Tensor | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.learns_only = False
        self.rest: tuple[None, ...] | None = None  # what blocks give behind their states; None: no tuple at all

    @contextmanager
    def use(self, rows: Sequence[EncodedExample]) -> Iterator[None]:
        """While a batch of these rows, padded on the right, goes through the model: read their states, or keep them."""
        if not self.blocks or not rows:  # a process without rows takes part with those of another
            yield
            return
        with ExitStack() as stack:
            if self.known.issuperset(map(id, rows)):
                for block in self.blocks:
                    block.forward = self._passed_on
                    stack.callback(vars(block).pop, "forward")
                self.blocks[-1].forward = partial(self._read, rows)
            else:
                handle = self.blocks[-1].register_forward_hook(lambda *call: self._keep(rows, call[-1]))
                stack.callback(handle.remove)
            yield

    def learn(self, rows: Sequence[EncodedExample], forward: Callable[[], Any]) -> None:
        """Keep what the frozen layers make of a batch, as `forward` sends it through the model; it gets no further."""
        if not self.blocks or self.known.issuperset(map(id, rows)):
            return
        self.learns_only = True
        try:
            forward()
        except _LearnedError:
            pass
        finally:
            self.learns_only = False

    def forget(self, rows: Sequence[EncodedExample]) -> None:
        """Keep nothing of these rows: they come again, in other batches."""
        self.known.difference_update(map(id, rows))

    def _keep(self, rows: Sequence[EncodedExample], output: Any) -> None:
        """Keep what the last frozen block has made of a batch."""
        states: Tensor
        states, *rest = output if isinstance(output, tuple) else (output,)
        self.rest = tuple(rest) if isinstance(output, tuple) else None
        if self.states is None and states.ndim == 3 and all(one is None for one in rest):
            self.states = self._room(states)
        if self.states is None:
            self.blocks = []
            return
        for row, places in zip(rows, _places(rows, states), strict=True):
            self.states[self.lines[id(row)]] = states.detach().flatten(0, 1)[places].cpu()
            self.known.add(id(row))
        if self.learns_only:
            raise _LearnedError

    def _passed_on(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the forward of a block whose work is done."""
        return hidden_states if self.rest is None else (hidden_states, *self.rest)

    def _read(self, rows: Sequence[EncodedExample], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stand in for that of the last one: give what was kept of these rows, in the layout of this call."""
        assert self.states is not None
        states = torch.zeros_like(hidden_states)
        lines = states.view(-1, states.shape[-1])
        for row, places in zip(rows, _places(rows, states), strict=True):
            lines[places] = self.states[self.lines[id(row)]].to(states.device)
        return self._passed_on(states)

    def _room(self, like: Tensor) -> Tensor | None:
        """Return room for the states of all rows, (tokens, width), in memory or in a file; None: there is none."""
        shape = (self.count, like.shape[-1])
        size = math.prod(shape) * like.element_size()
        if size <= MEMORY_BYTES:
            return torch.empty(shape, dtype=like.dtype)
        if shutil.disk_usage(tempfile.gettempdir()).free < size + SPARED_DISK:
            return None
        self.folder = tempfile.TemporaryDirectory(prefix="peftly-states-")
        file = str(Path(self.folder.name) / "states")
        return torch.from_file(file, shared=True, size=math.prod(shape), dtype=like.dtype).view(shape)


def _places(rows: Sequence[EncodedExample], states: Tensor) -> list[Tensor]:
    """Return where the words of each row are among the columns of a batch that is under way, laid end to end."""
    packed = packed_token_indices()
    if packed is not None:
        return [places[: len(row.input_ids)] for row, places in zip(rows, packed, strict=True)]
    starts = [number * states.shape[1] for number in range(len(rows))]
    return [
        torch.arange(start, start + len(row.input_ids), device=states.device)
        for start, row in zip(starts, rows, strict=True)
    ]
