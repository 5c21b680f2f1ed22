"""Refusal of calls that multiply by the weight of the output head themselves, where an adapter changes the head.

TRL's trainers call a model with `fused_lm_head=True`: a forward of theirs reads `lm_head.weight` and does not call the
head, so an adapter of the head would neither work nor be trained.
"""

from __future__ import annotations

from typing import Any

from torch.utils.hooks import RemovableHandle

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS
from peftly.injection.selection import selection_of

__all__ = ["refuse_fused_head"]


def refuse_fused_head(model: Any) -> RemovableHandle:
    """Let a call of a model raise an error if it does not call its output head and an adapter changes the head.

    Returns:
        The hook on the model.
    """
    handle: RemovableHandle = model.register_forward_pre_hook(_refuse, with_kwargs=True)
    return handle


def _refuse(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook.

    Raises:
        MethodError: the call does not call the head, and an active adapter changes it.
    """
    if not kwargs.get("fused_lm_head"):
        return
    adapters = getattr(model.get_output_embeddings(), LAYER_ADAPTERS, {})
    if active := [name for name in adapters if name in selection_of(model).active.names]:
        raise MethodError(
            f"TRL reads the weight of the output head instead of calling it, so the adapter {active[0]!r} would not be "
            "trained there: leave the head out of target_modules and modules_to_save (`selective` takes head=false; "
            "`full` cannot be trained by TRL)"
        )
