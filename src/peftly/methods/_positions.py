"""Positions that count the words of each row, so that padding in front of a text does not move it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

__all__ = ["TextPositions", "positions_of"]


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each real token in its row, (batch, length); padding gets 0.

    Args:
        mask: (batch, length), not 0 for real tokens.
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0) * mask.ne(0)


class TextPositions:
    """A hook on a decoder's body that derives `position_ids` from a 2-D mask where the caller gave none.

    Without them GPT-2 counts padding as words, and a left-padded row gets other logits than the same row alone.
    """

    def __init__(self, model: Any) -> None:
        """Install the hook on a causal language model of transformers."""
        body = model.get_decoder()
        self.signature = inspect.signature(body.forward)
        self.handle = body.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off again."""
        self.handle.remove()

    def _before(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        call = self.signature.bind_partial(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        mask, text = call.get("attention_mask"), call.get("input_ids")
        text = call.get("inputs_embeds") if text is None else text
        is_open = call.get("position_ids") is None and "position_ids" in self.signature.parameters
        if is_open and text is not None and isinstance(mask, Tensor) and mask.ndim == 2:
            call["position_ids"] = positions_of(mask)[:, -text.shape[1] :]
        return (), call
