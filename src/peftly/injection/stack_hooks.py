"""Hooks on the stacks of a model, through which virtual tokens and prefixes enter and leave.

Every adapted transformers model has them. Without virtual tokens and prefixes they only compute positions. They work
inside the model, so heads, losses, `generate` and all callers see the text only. The state of a call is a `StackCall`
of the current context, and insertions that outlive the call are noted on its cache; the hooks store nothing. So calls
in several threads, and copies and pickles of the model, do not affect each other.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from peftly.errors import MethodError
from peftly.injection import packing
from peftly.injection.caching import cache_adapter_tensors
from peftly.injection.insertion import cache_insertions
from peftly.injection.overrides import override_method, restore_method
from peftly.injection.positions import Positions, columns_of, positions_behind_padding
from peftly.injection.prefix_calls import checkpointing_with_prefix, insert_prefixes, restore_cache
from peftly.injection.prefixes import has_prefixes, max_prefix_length
from peftly.injection.selection import selection_of
from peftly.injection.stack_calls import close_call, open_call
from peftly.injection.text_stacks import Role, role_of, text_stack
from peftly.injection.virtual_token_calls import extend_encoder_mask, insert_virtual_tokens, remove_virtual_tokens
from peftly.injection.virtual_tokens import has_virtual_tokens, max_virtual_tokens
from peftly.kernels import IMPLEMENTATION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelHooks", "StackHooks"]


class ModelHooks:
    """All hooks of one model.

    Attributes:
        model: the model.
        text: hooks of the stack that reads the text; None for a model that reads sounds, images or numbers.
        target: hooks of the decoder behind an encoder, or None.
    """

    def __init__(self, model: PreTrainedModel, *, is_sequence_classifier: bool) -> None:
        """Add the hooks.

        Args:
            model: a model without hooks.
            is_sequence_classifier: whether its head classifies whole texts.
        """
        role = role_of(model)
        self.model = model
        text, target = text_stack(model, role), text_stack(model, "target") if role == "source" else None
        self.text = text and StackHooks(model, text, role, is_sequence_classifier=is_sequence_classifier)
        self.target = target and StackHooks(model, target, "target")
        self.generates = model.can_generate()
        if self.generates:
            for override in _OVERRIDES:
                override_method(model, override.name, override(model, self))

    @property
    def attending(self) -> StackHooks | None:
        """Hooks of the stack that attends to prefixes: the one that has a cache; None where no stack reads text."""
        return self.text if self.target is None else self.target

    def remove(self) -> None:
        """Remove the hooks."""
        for hooks in (self.text, self.target):
            if hooks is not None:
                hooks.remove()
        if self.generates:
            for override in _OVERRIDES:
                restore_method(self.model, override.name)

    def num_virtual_tokens(self) -> int:
        """Return the largest number of active virtual tokens of a text."""
        return 0 if self.text is None else max_virtual_tokens(self.text)

    def num_inserted_columns(self) -> int:
        """Return the largest number of columns that the active adapters insert into the cache of a call."""
        virtual_tokens = 0 if self.target is not None else self.num_virtual_tokens()
        return virtual_tokens + (0 if self.attending is None else max_prefix_length(self.attending))


class StackHooks:
    """Hooks of one stack.

    Attributes:
        model: model of the stack.
        stack: module whose calls the hooks change.
        role: see `Role`.
        is_sequence_classifier: whether the head of the model classifies whole texts.
        config: configuration of the text that the stack reads.
        names: names of the arguments of the stack's forward.
        positions: positions of the tokens of a call.
        pooler: pooler of the stack, which reads whole texts, or None.
    """

    def __init__(self, model: Any, stack: Any, role: Role, *, is_sequence_classifier: bool = False) -> None:
        self.model, self.stack, self.role = model, stack, role
        self.is_sequence_classifier = is_sequence_classifier
        self.config = getattr(stack, "config", model.config)
        self.names = tuple(inspect.signature(stack.forward).parameters)
        self.positions = Positions(stack, takes_argument="position_ids" in self.names)
        self.pooler = getattr(stack, "pooler", None)
        self.handles = [
            stack.register_forward_pre_hook(self._before, with_kwargs=True),
            stack.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        if self.pooler is not None:
            self.handles.append(self.pooler.register_forward_pre_hook(packing.PoolerHook()))

    def remove(self) -> None:
        """Remove the hooks."""
        self.positions.remove()
        for handle in self.handles:
            handle.remove()

    def check_length(self, columns: int, mask: Tensor | None, inserted: int) -> None:
        """Check that the texts of a call, with the inserted columns, have no more positions than the base.

        Args:
            columns: number of columns, with padding.
            mask: (batch, columns), or None without padding.
            inserted: number of inserted columns.

        Raises:
            MethodError: a text has more positions.
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is None or limit < 0 or columns <= limit:  # XLNet has -1 for no limit
            return
        needed = columns if mask is None else int(mask.ne(0).sum(1).max())  # padding needs no position
        if needed > limit:
            raise MethodError(
                f"{needed} positions ({needed - inserted} of text and {inserted} virtual tokens) are more than "
                f"the {limit} of this base; shorten the text (data.max_length) or use fewer virtual tokens"
            )

    def _before(
        self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        if torch.compiler.is_compiling() and self._is_traceable():
            return self._with_positions(args, kwargs)
        call = open_call(self)  # first of all: `_after` closes it even if this hook fails
        arguments = call.arguments = self._by_name(args, kwargs)
        if self.role == "target":
            extend_encoder_mask(self, call)
        elif not packing.is_packed_sequence(self):
            insert_virtual_tokens(self, call)
        packing.pack_call(self, call)
        insert_prefixes(self, call)
        call.contexts.enter_context(checkpointing_with_prefix(self, call))
        if call.is_changed:
            call.contexts.enter_context(self.positions.applied(arguments, call.inputs.shape[1]))
        elif len(selection_of(self.model).active.sets) > 1 and self._shares_positions():
            # Elements that share their positions could not have tables of positions of their own.
            derive = positions_behind_padding if self._moves_padded_texts() else columns_of
            call.contexts.enter_context(self.positions.applied(arguments, call.inputs.shape[1], derive))
        elif (
            arguments.get("position_ids") is None  # `generate` gives them, so its steps need not wait for the mask
            and self._moves_padded_texts()
            and _is_padded_in_front(arguments.get("attention_mask"))
        ):
            derived = self.positions.applied(arguments, call.inputs.shape[1], positions_behind_padding)
            call.contexts.enter_context(derived)
        return (), arguments

    def _after(self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_compiling() and self._is_traceable():
            return None
        call = close_call(self)
        if call is None:
            return None
        call.contexts.close()
        if output is None:  # the stack failed
            return None
        output = packing.pad_output(call, restore_cache(call, output))
        return output if self.role == "target" else remove_virtual_tokens(self, call, output)

    def _moves_padded_texts(self) -> bool:
        """Whether left-padded texts without insertions get positions of their own. Encoders keep those of the base."""
        return self.role == "decoder" and not self.positions.counts_tokens

    def _shares_positions(self) -> bool:
        """Whether all batch elements share their positions, which OPT and RoBERTa compute for each element."""
        return not self.positions.counts_tokens and self.positions.first == 0

    def _with_positions(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """Return the arguments of a call that torch.compile traces, with the positions of left-padded texts."""
        arguments = self._by_name(args, kwargs)
        mask = arguments.get("attention_mask")
        if not (isinstance(mask, Tensor) and mask.ndim == 2 and arguments.get("position_ids") is None):
            return None
        if not (self.positions.takes_argument and self._moves_padded_texts()):
            return None
        inputs = arguments.get("input_ids")
        length = (arguments["inputs_embeds"] if inputs is None else inputs).shape[1]
        return (), arguments | {"position_ids": positions_behind_padding(mask)[:, -length:]}

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call of the stack by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def _is_traceable(self) -> bool:
        """Whether torch.compile can trace the calls of the stack, into which nothing is inserted."""
        return not (
            has_virtual_tokens(self) or has_prefixes(self) or self.config._attn_implementation == IMPLEMENTATION
        )


def _is_padded_in_front(mask: Any) -> bool:
    """Whether a 2-D mask has padding in its first column."""
    return isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask[:, 0].eq(0).any())


class _Override:
    """A method of a model that replaces the one of its class, with the same signature."""

    name: ClassVar[str]

    def __init__(self, model: Any, hooks: ModelHooks) -> None:
        self.original = getattr(model, self.name)
        self.hooks = hooks

    @property
    def __signature__(self) -> inspect.Signature:
        """Signature of the original, by which `generate` decides which inputs a model takes."""
        return inspect.signature(self.original)


class _PrepareInputs(_Override):
    """`prepare_inputs_for_generation` that counts text, where the cache counts inserted columns too."""

    name = "prepare_inputs_for_generation"

    def __call__(self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of the next call of the model."""
        cache: Any = kwargs.get("past_key_values")
        inserted = cache_insertions(cache).count
        if next_sequence_length is not None and inserted:
            if kwargs.get("inputs_embeds") is None:
                next_sequence_length = input_ids.shape[1] - (int(cache.get_seq_length()) - inserted)
            elif kwargs.get("is_first_iteration"):
                next_sequence_length += inserted
        is_decoder_alone = not self.hooks.model.config.is_encoder_decoder
        mask_name = "attention_mask" if is_decoder_alone else "decoder_attention_mask"
        mask = kwargs.get(mask_name)
        inputs: dict[str, Any] = self.original(input_ids, next_sequence_length=next_sequence_length, **kwargs)
        if self.hooks.num_inserted_columns() and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
            inputs[mask_name] = mask  # for a static cache it is a 4-D mask, into which nothing can be inserted
        return inputs


class _PrepareCache(_Override):
    """`_prepare_cache_for_generation` that makes room for inserted columns in a static cache."""

    name = "_prepare_cache_for_generation"

    def __call__(self, config: Any, model_kwargs: Any, mode: Any, batch_size: int, max_cache_length: int) -> None:
        """Put a cache into `model_kwargs`."""
        self.original(config, model_kwargs, mode, batch_size, max_cache_length + self.hooks.num_inserted_columns())


class _Generate(_Override):
    """`generate` that caches the tensors of adapters, since no weight changes while it runs."""

    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the generated tokens."""
        with cache_adapter_tensors():
            return self.original(*args, **kwargs)


_OVERRIDES = (_PrepareInputs, _PrepareCache, _Generate)
