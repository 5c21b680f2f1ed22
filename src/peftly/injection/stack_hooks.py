"""The hooks on a model's stacks of blocks through which virtual tokens and prefixes enter and leave.

Every adapted transformers model has them; without such adapters they only see to positions. They work inside the
model's body, so heads, losses, `generate` and every caller see the text only. What a call needs to remember (what was
put in, and where) rides on its own tensors and cache, never on the hooks: calls from several threads, copies and
pickles of the model do not disturb each other.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from peftly.errors import MethodError
from peftly.injection import packing, prefixes, virtual_tokens
from peftly.injection.insertion import cached_beside_text
from peftly.injection.layers import fixed_weights, override_method, restore_method
from peftly.injection.positions import Positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelHooks", "Role", "StackHooks", "role_of"]

Role = Literal["decoder", "encoder", "source", "target"]
"""What a stack is: a causal decoder or an encoder alone, or an encoder (source) and its decoder (target) together."""


def role_of(model: PreTrainedModel) -> Role:
    """Return what the stack is that reads a model's text."""
    if model.config.is_encoder_decoder:
        return "source"
    is_causal = all(getattr(module, "is_causal", True) is not False for module in model.modules())
    return "decoder" if is_causal else "encoder"


class ModelHooks:
    """All hooks of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        role = role_of(model)
        self.model = model
        self.text = StackHooks(model, model.get_encoder() if role == "source" else model.get_decoder(), role)
        self.target = StackHooks(model, model.get_decoder(), "target") if role == "source" else None
        self.generates = model.can_generate()
        if self.generates:
            for override in _OVERRIDES:
                override_method(model, override.name, override(model, self))

    @property
    def attending(self) -> StackHooks:
        """The stack that prefixes belong to: the one that has a cache."""
        return self.text if self.target is None else self.target

    def remove(self) -> None:
        """Take the hooks off again."""
        for body in (self.text, self.target):
            if body is not None:
                body.remove()
        if self.generates:
            for override in _OVERRIDES:
                restore_method(self.model, override.name)

    def num_virtual_tokens_of(self) -> int:
        """Return how many virtual tokens a text has, with the adapters that are on."""
        return virtual_tokens.chosen_count(self.text)

    def cached_count(self) -> int:
        """Return how many more columns than the text's the cache of a call gets, with the adapters that are on."""
        virtual = 0 if self.target is not None else self.num_virtual_tokens_of()
        return virtual + prefixes.chosen_count(self.attending)


class StackHooks:
    """One stack of blocks with its hooks.

    Attributes:
        model: whose stack it is.
        module: the stack.
        role: see `Role`.
        config: of the stack's text.
        signature: of the stack's forward.
        pooler: the stack's own, which reads whole rows; None: it has none.
    """

    def __init__(self, model: Any, module: Any, role: Role) -> None:
        self.model, self.module, self.role = model, module, role
        self.config = model.config.get_text_config(decoder=True) if role == "decoder" else model.config
        self.signature = inspect.signature(module.forward)
        self.positions = Positions(module, takes_argument="position_ids" in self.signature.parameters)
        self.pooler = getattr(module, "pooler", None)
        self.handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        if self.pooler is not None:
            self.handles.append(self.pooler.register_forward_pre_hook(packing.PoolerReads()))

    def remove(self) -> None:
        """Take the hooks off again."""
        self.positions.remove()
        for handle in self.handles:
            handle.remove()

    def check_length(self, columns: int, mask: Tensor | None, added: int) -> None:
        """Refuse a call whose rows, with what was put in, have more positions than the base knows.

        Args:
            columns: how many the rows have, padding included.
            mask: (batch, columns), or None without padding.
            added: how many of them are no text.
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is None or columns <= limit:
            return
        needed = columns if mask is None else int(mask.ne(0).sum(1).max())  # padding needs no position
        if needed > limit:
            raise MethodError(
                f"{needed} positions ({needed - added} of text and {added} virtual tokens) are more than "
                f"the {limit} of this base; shorten the text (data.max_length) or use fewer virtual tokens"
            )

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        call = self.signature.bind_partial(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        open_ = ExitStack()
        _OPEN.set((*_OPEN.get(), open_))
        if self.role == "target":
            virtual_tokens.show_to_decoder(self, call)
        else:
            virtual_tokens.enter(self, call)
        packing.enter(self, call)
        prefixes.enter(self, call)
        open_.enter_context(packing.under_way(call))
        open_.enter_context(prefixes.checkpointing_with_prefix(self, call))
        words = call.get("input_ids") if call.get("input_ids") is not None else call.get("inputs_embeds")
        if words is not None:
            open_.enter_context(self.positions.given(call, words.shape[1]))
        return (), call

    def _after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        *others, open_ = _OPEN.get()
        _OPEN.set(tuple(others))
        open_.close()
        if output is None:  # the stack failed
            return None
        output = packing.leave(kwargs, prefixes.leave(self, kwargs, output))
        return output if self.role == "target" else virtual_tokens.leave(self, kwargs, output)


_OPEN: ContextVar[tuple[ExitStack, ...]] = ContextVar("calls under way", default=())


class _PrepareInputs:
    """`prepare_inputs_for_generation` that counts text, where the cache counts what adapters put in too."""

    name: ClassVar[str] = "prepare_inputs_for_generation"

    def __init__(self, model: Any, bodies: ModelHooks) -> None:
        self.original = getattr(model, self.name)
        self.bodies = bodies

    def __call__(self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any) -> dict[str, Any]:
        cache: Any = kwargs.get("past_key_values")
        mask = kwargs.get("attention_mask")
        added = cached_beside_text(cache)
        if next_sequence_length is not None and added:
            next_sequence_length = input_ids.shape[1] - (int(cache.get_seq_length()) - added)
        inputs: dict[str, Any] = self.original(input_ids, next_sequence_length=next_sequence_length, **kwargs)
        if self.bodies.cached_count() and isinstance(mask, Tensor) and mask.ndim == 2:
            inputs["attention_mask"] = mask  # static caches make a 4-D one, which has no room for more
        return inputs


class _PrepareCache:
    """`_prepare_cache_for_generation` with room for what adapters put in in a static cache."""

    name: ClassVar[str] = "_prepare_cache_for_generation"

    def __init__(self, model: Any, bodies: ModelHooks) -> None:
        self.original = getattr(model, self.name)
        self.bodies = bodies

    def __call__(self, config: Any, model_kwargs: Any, mode: Any, batch_size: int, max_cache_length: int) -> None:
        self.original(config, model_kwargs, mode, batch_size, max_cache_length + self.bodies.cached_count())


class _Generate:
    """`generate`, during which no weight changes."""

    name: ClassVar[str] = "generate"

    def __init__(self, model: Any, bodies: ModelHooks) -> None:
        self.original = getattr(model, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with fixed_weights():
            return self.original(*args, **kwargs)


_OVERRIDES = (_PrepareInputs, _PrepareCache, _Generate)
