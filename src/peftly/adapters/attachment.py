"""Adapters put on a model and taken off: plain functions over any module, most methods over transformers' models only.

A model may carry several adapters, of one method or of several. Active adapters work together on every batch element of
a call, in the order in which they were attached; `set_adapters` and `use_adapters` choose which adapters are active.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from transformers import PreTrainedModel

from peftly.adapters.arguments import PEFT_METHODS, RefuseMethod, check_config, check_model
from peftly.adapters.embeddings import restore_embeddings
from peftly.adapters.pretrained import PushAdapters, SaveAdapters, UpdateCard, ignore_missing_base, take_peft_names
from peftly.adapters.rollback import restored_on_failure
from peftly.adapters.state import ATTRIBUTE, AttachedAdapters, attached, checked_names, state_of, use_adapters
from peftly.adapters.vocabulary import ResizeVocabulary, SetEmbedding, vocabulary_size
from peftly.errors import MethodError
from peftly.injection import (
    ActiveAdapters,
    Checkpointing,
    ModelHooks,
    ReachCheck,
    Selection,
    adapted_layers,
    add_copies,
    base_modules,
    invalidate_cached_tensors,
    is_within,
    override_method,
    parts_without,
    patch_quantized_layers,
    refuse_fused_head,
    remove_weight_readers,
    restore_method,
    restore_quantized_layers,
    serve_weight_readers,
    task_modules,
)
from peftly.methods import METHODS, Adapter, MethodConfig, Setup
from peftly.models import open_original, pooling_of, task_of
from peftly.settings import check_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["attach", "attach_without_values", "detach", "install"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_METHODS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "save_pretrained": SaveAdapters,
    "push_to_hub": PushAdapters,
    "create_or_update_model_card": UpdateCard,
    "resize_token_embeddings": ResizeVocabulary,
}
_SET_EMBEDDING = ("set_input_embeddings", "set_output_embeddings")


def attach(
    model: ModelT,
    config: MethodConfig,
    *,
    name: str = "default",
    tokenizer: PreTrainedTokenizerBase | None = None,
    answers: Sequence[str] = (),
    seed: int = 0,
    examples: Sequence[EncodedExample] = (),
) -> ModelT:
    """Freeze `model` and put a new adapter on it, in place. The adapter is active, as are those that were before.

    Args:
        model: any module that the method supports: for methods with virtual tokens or prefixes a transformers model,
            for others any `torch.nn.Module`. Its own weights never change.
        config: settings of the method, for example `LoRA(rank=16)`.
        name: name of the adapter in the model.
        tokenizer: tokenizer of the model, for methods that are initialised from text.
        answers: answers of a labelled task, for methods that are initialised from them; see `RowFormat.answers`.
        seed: seed of the initial values; the global random generators are not used.
        examples: training examples, for methods that are initialised from the inputs of layers (`data.train.encoded`).

    Returns:
        The same model. Its `save_pretrained` now writes its adapters.

    Raises:
        MethodError: the model has an adapter of this name or of PEFT, or cannot carry this one, or an argument is
            neither a model nor the settings of a method; the model is then unchanged.
        ConfigError: the seed is not a whole number from 0 to 2³² - 1.
    """
    check_config(config)
    check_seed(seed)
    check_model(model)
    setup = Setup(tokenizer, tuple(answers), seed, examples, partial(open_original, model))
    kind = METHODS[config.name].adapter
    with restored_on_failure(model):
        adapter = install(model, config, name, lambda: kind.attach(model, config, name, setup))
    try:
        with use_adapters(model, name):
            adapter.initialize_from_data(setup)
        state_of(model).selection.activate(name)
    except BaseException:
        detach(model, name)
        raise
    invalidate_cached_tensors()  # the initialisation may have called the model with other values
    return model


def attach_without_values(
    model: ModelT, config: MethodConfig, *, name: str = "default", tokenizer: PreTrainedTokenizerBase | None = None
) -> ModelT:
    """Put a new adapter on a model whose parameters have no data, for counting; see `attach`.

    Initial values that depend on data, on the weights of the base or on a text are left out.

    Args:
        model, config, name: as for `attach`.
        tokenizer: tokenizer, for a number of virtual tokens that is that of a text; None: there is none.

    Raises:
        MethodError: the model cannot carry the adapter.
    """
    kind, setup = METHODS[config.name].adapter, Setup(tokenizer, is_loading=True)
    install(model, config, name, lambda: kind.attach(model, config, name, setup))
    state_of(model).selection.activate(name)
    return model


def install(model: nn.Module, config: MethodConfig, name: str, create: Callable[[], Adapter]) -> Adapter:
    """Freeze `model` and put an adapter on it, inside `restored_on_failure`. The adapter is not active yet.

    Args:
        model, config, name: as for `attach`.
        create: function that puts the adapter on the model and returns it.

    Raises:
        MethodError: as for `attach`.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise MethodError(f"an adapter's name is a non-empty string without dots, got {name!r}")
    if name in attached(model):
        raise MethodError(f"this model has an adapter {name!r} already; detach it first, or give this one another name")
    if hasattr(nn.ModuleDict(), name):
        raise MethodError(f"an adapter cannot be called {name!r}: every torch module has an attribute of this name")
    if isinstance(model, torch.jit.ScriptModule):
        raise MethodError(
            f"{type(model).__name__} is a TorchScript module; attach the adapter to the module it is made of"
        )
    if lazy := next((path for path, parameter in model.named_parameters() if is_lazy(parameter)), None):
        raise MethodError(f"{lazy} has no values yet; call the model once, and attach the adapter then")
    unsupported_reason = METHODS[config.name].adapter.unsupported_reason(model)
    if unsupported_reason is not None:
        raise MethodError(unsupported_reason)
    if not attached(model):
        _prepare(model)
    adapter = create()
    _save_modules(model, name, config.modules_to_save)
    state = state_of(model)
    serve_weight_readers(model, state.selection)
    state.reach.begin_again()
    state.adapters[name] = adapter
    return adapter


def detach(model: ModelT, name: str | None = None) -> ModelT:
    """Take an adapter off `model`, or all of them; without any adapter, the model is as before the first `attach`.

    Args:
        model: a model with adapters.
        name: name of the adapter; None: all of them.

    Returns:
        The same model.

    Raises:
        MethodError: the model has no adapter, or none of this name.
    """
    state = state_of(model)
    for removed in list(state.adapters) if name is None else checked_names(state, [name]):
        state.adapters.pop(removed).remove()
        state.tokenizers.pop(removed, None)
        state.other_quantizations.pop(removed, None)
        state.selection.default = ActiveAdapters([state.selection.default.sets[0] - {removed}])
    if state.adapters:
        serve_weight_readers(model, state.selection)
    else:
        _restore(model)
    return model


def _prepare(model: nn.Module) -> None:
    """Freeze a model that has no adapter yet, and add the state that all adapters share."""
    patched_layers = patch_quantized_layers(model)
    # By all names of a parameter: merging may untie a parameter that several modules share.
    named = model.named_parameters(remove_duplicate=False)
    selection = Selection()
    unfrozen = [name for name, parameter in named if parameter.requires_grad]
    state = AttachedAdapters(unfrozen, patched_layers, selection, ReachCheck(model, selection))
    model.requires_grad_(False)
    setattr(model, ATTRIBUTE, state)
    state.vocabulary = vocabulary_size(model)
    if isinstance(model, PreTrainedModel):
        reads_first_token = task_of(model) == "sequence_classification" and pooling_of(model) != "mean"
        state.hooks = ModelHooks(model, is_sequence_classifier=reads_first_token)
        for method, replacement in _METHODS.items():
            override_method(model, method, replacement(model))
        for method in _SET_EMBEDDING:
            override_method(model, method, SetEmbedding(model, method))
        for method in PEFT_METHODS:
            override_method(model, method, RefuseMethod(model, method))
        state.handles = [
            model.register_load_state_dict_pre_hook(take_peft_names),
            model.register_load_state_dict_post_hook(ignore_missing_base),
            refuse_fused_head(model),
        ]
        state.checkpointing = Checkpointing(model)
        if getattr(model, "is_quantized", False):
            # transformers' Trainer trains a quantised model only if this attribute reports an adapter on the model.
            model._hf_peft_config_loaded = True


def _restore(model: nn.Module) -> None:
    """Undo `_prepare`."""
    restore_embeddings(model)
    state = state_of(model)
    if state.generation is not None:
        model.generation_config = state.generation
    remove_weight_readers(model)
    for part in (*state.handles, state.reach, state.hooks, state.checkpointing):
        if part is not None:
            part.remove()
    restore_quantized_layers(state.patched_layers)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path in state.unfrozen:
        parameters[path].requires_grad_(True)
    if isinstance(model, PreTrainedModel):
        for method in (*_METHODS, *_SET_EMBEDDING, *PEFT_METHODS):
            restore_method(model, method)
        vars(model).pop("_hf_peft_config_loaded", None)
    delattr(model, ATTRIBUTE)


def _save_modules(model: nn.Module, name: str, modules_to_save: Sequence[str] | None) -> None:
    """Let an adapter train copies of whole modules.

    Args:
        model: model with the adapter.
        name: name of the adapter.
        modules_to_save: ends of module paths; None: the parts of the model that an adapter always saves, such as the
            head of a classifier, where the adapter has no layers of its own in them.
    """
    if modules_to_save is None:
        adapted = [path for path, _, _ in adapted_layers(model, name)]
        paths = [part for path in task_modules(model) for part in parts_without(model, path, adapted)]
    else:
        # By the end of a path, without a dot, as PEFT does: `classifier` is DistilBERT's `pre_classifier` too.
        matching = [path for path, _ in base_modules(model) if path.endswith(tuple(modules_to_save))]
        paths = [path for path in matching if not is_within(path, [other for other in matching if other != path])]
        if modules_to_save and not paths:
            raise MethodError(f"modules_to_save={list(modules_to_save)} match no module of this {type(model).__name__}")
    add_copies(model, name, map(model.get_submodule, paths))
