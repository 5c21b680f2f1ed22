"""The adapters of a model, and which of them are active.

A model may have several adapters, of one method or of several. The active ones work together on every batch element of
a call, in the order of attachment. `set_adapters` and `use_adapters` activate others, for all batch elements or for
each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from peftly.adapters.arguments import check_model
from peftly.errors import MethodError
from peftly.injection import (
    ActiveAdapters,
    AdapterNames,
    Checkpointing,
    ModelHooks,
    ReachCheck,
    Selection,
    copied_modules,
    is_within,
    new_modules,
)
from peftly.kernels import num_weights
from peftly.methods import Adapter

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from peftly.models import Quantization

__all__ = [
    "ATTRIBUTE",
    "AdapterChoice",
    "AttachedAdapters",
    "TrainedOver",
    "active_adapters",
    "attached",
    "check_names",
    "checked_names",
    "num_virtual_tokens_of",
    "parameter_counts",
    "parts_without_copy",
    "set_adapters",
    "state_of",
    "trainable_parameters",
    "use_adapters",
    "use_prompt_positions",
]

ATTRIBUTE = "_peftly"
"""Attribute of a model with adapters that holds its `AttachedAdapters`."""

AdapterChoice = str | Sequence[str] | None
"""Adapters of one batch element: the name of one adapter, the names of several that work together, or None."""


class TrainedOver(NamedTuple):
    """Quantization of the base in the training of an adapter.

    Attributes:
        quantization: the quantization.
        versions: versions of the trained parameters when the adapter was loaded, which further training changes.
    """

    quantization: Quantization
    versions: tuple[int, ...]


@dataclass
class AttachedAdapters:
    """The adapters of one model, and everything that is needed to remove them.

    Attributes:
        unfrozen: names of the parameters that required grad before the first adapter was attached.
        patched_layers: quantised layers that compute with our kernels.
        selection: active adapters.
        reach: check of the first calls of the model.
        adapters: adapters by name, in the order of attachment.
        other_quantizations: quantization of the base in the training of adapters by name, where this base has another.
        hooks: hooks on the stacks of a transformers model; None for other modules.
        checkpointing: gradient checkpointing of a transformers model; None for other modules.
        revision: commit, branch or tag of the base, for the files of the adapters; None: not known, or the main one.
        vocabulary: number of embeddings of the base before the first adapter was attached; None for other modules.
        embeddings: parameters of the base for which the file of an adapter has values; see `adapters.embeddings`.
        replaced_rows: parameters into which such embeddings were written: indices of the rows, and their own values.
        tokenizers: tokenizers that adapters came with, by the name of the adapter.
        generation: settings of generation of the base, where an adapter came with others; None: nothing was replaced.
        handles: hooks on `load_state_dict` and on the calls of a transformers model; none for other modules.
    """

    unfrozen: list[str]
    patched_layers: list[nn.Module]
    selection: Selection
    reach: ReachCheck
    adapters: dict[str, Adapter] = field(default_factory=dict)
    other_quantizations: dict[str, TrainedOver] = field(default_factory=dict)
    hooks: ModelHooks | None = None
    checkpointing: Checkpointing | None = None
    revision: str | None = None
    vocabulary: int | None = None
    embeddings: set[nn.Parameter] = field(default_factory=set)
    replaced_rows: list[tuple[nn.Parameter, Tensor, Tensor]] = field(default_factory=list)
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    generation: GenerationConfig | None = None
    handles: list[RemovableHandle] = field(default_factory=list)


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of `model` by name, in the order of attachment."""
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    return {} if state is None else dict(state.adapters)


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the adapters of `model` that are active by default, as set by `set_adapters`."""
    state = state_of(model)
    return [name for name in state.adapters if name in state.selection.default.sets[0]]


def num_virtual_tokens_of(model: nn.Module) -> int:
    """Return the number of virtual tokens that the active adapters insert into every text."""
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    return 0 if state is None or state.hooks is None else state.hooks.num_virtual_tokens()


def set_adapters(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Activate the adapters `names` of `model`, and no others; without names, deactivate all.

    Returns:
        The same model.

    Raises:
        MethodError: the model has no adapter of such a name.
    """
    state = state_of(model)
    state.selection.default = ActiveAdapters([checked_names(state, names)])
    return model


@contextmanager
def use_adapters(
    model: PreTrainedModel, *names: str, adapters: Sequence[AdapterChoice] | None = None
) -> Iterator[None]:
    """Activate other adapters for the calls of `model` inside the block, in this thread.

    With `adapters`, each batch element has the outputs that it would have alone with its adapters.

    A thread that is started inside the block does not inherit the choice, and warns when it calls the model. Enter the
    block in the function that the thread runs, or start the thread in a copy of the context:

        with peftly.use_adapters(model, "a"):
            context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(model.generate,), kwargs=inputs | {"streamer": streamer}).start()

    Args:
        model: a model with adapters.
        names: adapters that work together on every batch element; without names, no adapter does.
        adapters: instead of `names`, the adapters of each batch element: `["a", "b", None, ("a", "b")]`. Beams and
            sequences that `generate` makes of a batch element have the adapters of this element.

    Raises:
        MethodError: the model has no adapter of such a name; or, when the model is called, the batch has another size.
    """
    state = state_of(model)
    if adapters is not None and names:
        raise MethodError("give names for all batch elements, or adapters for each; not both")
    if adapters is None:
        sets = [checked_names(state, names)]
    elif adapters:
        sets = [checked_names(state, [choice] if isinstance(choice, str) else choice or ()) for choice in adapters]
    else:
        raise MethodError("adapters is empty: give one adapter, several, or None for each batch element")
    with state.selection.use(ActiveAdapters(sets), warns=True):
        yield


@contextmanager
def use_prompt_positions(model: nn.Module, positions: Sequence[Sequence[int]] | Tensor | None) -> Iterator[None]:
    """Set the positions of virtual tokens with `position: template` in the calls of `model` inside the block.

    `train`, `evaluate`, `generate` and `classify` set the positions themselves; this function is for direct calls of
    the model. It affects the current thread only.

    Args:
        model: a model; positions change nothing for one without such virtual tokens.
        positions: for each batch element, the token of its text before which each virtual token goes: 0 for the first
            token, the number of tokens for the end; padding is not counted. Pass `EncodedExample.prompt_positions` of
            each example, or the `prompt_positions` of a batch (in which shorter entries are padded with -1). Beams and
            sequences that `generate` makes of a batch element have the positions of this element. None, or no position
            in any entry: no positions are set.
    """
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    table = positions.tolist() if isinstance(positions, Tensor) else positions or []
    unpadded = tuple(tuple(position for position in entry if position >= 0) for entry in table)
    if state is None or not any(unpadded):
        yield
        return
    with state.selection.use_prompt_positions(unpadded):
        yield


def check_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return `names` as a list.

    Raises:
        MethodError: the model has no adapter, or none of such a name.
    """
    checked_names(state_of(model), names)
    return list(names)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters of a model, and of all its parameters, each counted once.

    A quantised weight counts as many parameters as before its quantisation.
    """
    counts: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            counts[parameter] = num_weights(module, name)
    return sum(count for parameter, count in counts.items() if parameter.requires_grad), sum(counts.values())


def state_of(model: nn.Module) -> AttachedAdapters:
    """Return the state of the adapters of a model.

    Raises:
        MethodError: the model has no adapter.
    """
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    if state is None:
        check_model(model)
        inner = next((path for path, part in model.named_modules() if hasattr(part, ATTRIBUTE)), None)
        advice = "attach or load one first" if inner is None else f"its part {inner} does: pass that"
        raise MethodError(f"this {type(model).__name__} carries no adapter; {advice}")
    return state


def checked_names(state: AttachedAdapters, names: Sequence[str]) -> AdapterNames:
    """Return `names` as a set.

    Raises:
        MethodError: there is no adapter of such a name.
    """
    unknown = [name for name in names if not isinstance(name, str) or name not in state.adapters]
    if unknown and not isinstance(unknown[0], str):
        raise MethodError(f'{unknown[0]!r} is no name of an adapter; give names one by one, such as "a", "b"')
    if unknown:
        raise MethodError(f"this model has no adapter {unknown[0]!r}; it has {', '.join(map(repr, state.adapters))}")
    return frozenset(names)


def parts_without_copy(model: Any) -> list[str]:
    """Return the modules of a model that its base has no weights for and no adapter trains a copy of."""
    copied = [path for name in attached(model) for path in copied_modules(model, name)]
    return [path for path in new_modules(model) if not is_within(path, copied)]
