"""A merged model as a folder that plain transformers opens.

The folder appears only after the written files were read back and their outputs compared with those of the adapted
model; see `parity`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from peftly.adapters import (
    AdapterSet,
    AdapterSource,
    adapter_names,
    attached,
    check_mergeable,
    check_number_of_weights,
    correcting_adapter,
    load_together,
    merge_adapters,
    open_compatible_adapters,
    weight_adapters,
)
from peftly.errors import ConfigError, MergeError, MethodError
from peftly.injection import dequantize
from peftly.merging.merged_card import CARD, copy_licences, merged_card, settings_of
from peftly.merging.merged_folder import KIND, check_out, check_room, read_back, write
from peftly.merging.parity import (
    Outputs,
    Parity,
    compare,
    logits_of,
    outputs_of,
    perplexities,
    relative_difference,
)
from peftly.merging.parity_samples import Samples, samples_for
from peftly.merging.rounding import rounding_in_fp32
from peftly.models import Base, BaseSpec, Quantization, check_links, pooling_of, stored_dtype
from peftly.utils import resolve_dtype, write_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["HeldOutExamples", "Into", "save_merged"]

Into = Literal["trained", "original"]
"""Base to merge into, for adapters that were trained over a quantised base."""

HeldOutExamples = Callable[
    [AdapterSet, "PreTrainedModel", "PreTrainedTokenizerBase"], tuple[Sequence["EncodedExample"], str]
]
"""Function that returns held-out examples of adapters and a description of their source.

It may raise a ConfigError, DataError or OSError if there are no such examples."""


def save_merged(
    adapters: AdapterSource | Sequence[AdapterSource],
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: "str | torch.dtype | None" = None,
    weights: Sequence[float] | None = None,
    into: Into = "trained",
    text: str | Path | None = None,
    held_out: "HeldOutExamples | None" = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    force: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Merge one or several adapters into their base and write the model. After an error `out` is as it was before.

    Weights are merged in fp32 and rounded once.

    Args:
        adapters: an adapter as `load` takes it, or several adapters of one base.
        out: output folder, missing or empty.
        base: base of the adapters, where it is not the one that they name, or has moved.
        dtype: dtype of the written weights, as `resolve_dtype` takes it; None: the dtype of the base's files.
        weights: weight of each adapter; for adapters whose updates can be added (LoRA). None: 1 for each.
        into: base to merge into, for adapters that were trained over a quantised base: the dequantised weights of this
            base ("trained"), or the base from which it was quantised ("original"). The result of "original" includes
            the difference between the two.
        text: file with one text in each line, on which the models are compared; None: `held_out`.
        held_out: function that returns examples for the comparison; see `samples_for`.
        max_shard_size: maximum size of a weights file, such as "5GB".
        overwrite: replace a merged model in `out`.
        force: write the merged model even if it differs by more than rounding explains.
        log: function that receives lines on the progress.

    Returns:
        Comparison of the written model with the adapted model.

    Raises:
        AdapterError, BaseModelError, MethodError: an adapter cannot be opened or merged.
        ConfigError: `out` cannot be used, the disk is too small, or the number of weights is not that of the adapters.
        MergeError: the merged model differs by more than rounding explains; nothing was written.
    """
    listed: list[Any] = list(adapters) if isinstance(adapters, list | tuple) else [adapters]
    target = Path(out).expanduser().resolve()
    check_out(target, max_shard_size, overwrite=overwrite)
    plan = _plan(listed, target, None if base is None else str(base), dtype, weights, into)
    model, tokenizer, samples, before, rounding, fp32_rounding = _adapted_model(plan, text, held_out, log)
    model_class, pooling = type(model), pooling_of(model)
    card = partial(merged_card, plan.base, *_ingredients(plan, model), pooling=pooling)
    merging, rounded = _merge(model, samples, before, plan.dtype, log)
    quantized = _over_quantized_base(plan, samples, before) if into == "original" else None
    with write_folder(target, kind=KIND, markers=("config.json",)) as folder:
        write(model, tokenizer, plan.dtype, folder, max_shard_size)
        del model
        merged, tokenizer = read_back(folder, model_class)
        differences = {"rounding": rounding, "merging": merging, "fp32_rounding": fp32_rounding}
        parity = compare(merged, tokenizer, samples, before, rounded, **differences)
        parity = replace(parity, quantized=quantized)
        if parity.complaint is not None and not force:
            raise MergeError(
                f"the merged model differs from the adapted model: {parity.complaint}; nothing was written "
                "(--force writes it anyway)"
            )
        log(copy_licences(plan.base, folder))
        (folder / CARD).write_text(card(parity), encoding="utf-8")
    opens = "transformers' from_pretrained" if pooling is None else "peftly.load_base or --base only"
    log(f"{out}: {parity.dtype}, opens with {opens}")
    return parity


class _MergePlan(NamedTuple):
    """Input of a merge, after the checks that need no model.

    Attributes:
        adapters: adapters of one base.
        base: their base.
        quantization: quantisation of the base in training; None for an unquantised base.
        into: base to merge into, as `save_merged` takes it.
        weights: weight of each adapter; None: 1 for each.
        dtype: dtype of the written weights.
        out: output folder.
    """

    adapters: tuple[AdapterSet, ...]
    base: BaseSpec
    quantization: Quantization | None
    into: Into
    weights: Sequence[float] | None
    dtype: "torch.dtype"
    out: Path


def _plan(
    sources: Sequence[AdapterSource],
    out: Path,
    moved_base: str | None,
    dtype: "str | torch.dtype | None",
    weights: Sequence[float] | None,
    into: Into,
) -> _MergePlan:
    """Open the files of the adapters and check the arguments, without opening a model."""
    if into not in get_args(Into):
        raise ConfigError(f"into={into!r} is not one of {', '.join(get_args(Into))}")
    if not sources:
        raise ConfigError("there is no adapter to merge; name one")
    by_source = open_compatible_adapters(sources, moved_base)
    check_number_of_weights(weights, adapter_names(by_source))
    adapters = tuple(by_source.values())
    quantization = adapters[0].quantization
    if into == "original" and quantization is None:
        raise ConfigError(
            f"into=original: {adapters[0].source} was trained over the base as its files have it; leave it out"
        )
    if into == "original" and (correcting := correcting_adapter(adapters)) is not None:
        raise ConfigError(
            f"into=original: {correcting} corrects the quantisation error of its base, so it fits only the base "
            "that it was trained over: use into='trained'"
        )
    base = adapters[0].base
    check_links(base.name, base.source)
    resolved_dtype = resolve_dtype(stored_dtype(base) if dtype is None else dtype)
    return _MergePlan(adapters, base, quantization, into, weights, resolved_dtype, out)


class _AdaptedModel(NamedTuple):
    """The adapted model in fp32 and its outputs for the samples.

    Attributes:
        model, tokenizer: the model with its adapters, and its tokenizer.
        samples: texts on which models are compared.
        outputs: outputs of the model.
        rounding: relative difference between its logits in fp32 and in the dtype of the merged model.
        fp32_rounding: relative difference between its logits that rounding in fp32 makes.
    """

    model: Any
    tokenizer: Any
    samples: Samples
    outputs: Outputs
    rounding: float
    fp32_rounding: float


def _adapted_model(
    plan: _MergePlan, text: str | Path | None, held_out: HeldOutExamples | None, log: Callable[[str], None]
) -> _AdaptedModel:
    """Open the adapted model in the dtype of the merged model and then in fp32, and compute its outputs in both.

    Raises:
        MethodError: an adapter cannot be merged.
    """
    import torch

    model, tokenizer = _open(plan, plan.dtype, plan.into)
    if model.main_input_name != "input_ids":
        raise MethodError(
            f"models are compared on texts here, and {type(model).__name__} reads {model.main_input_name}; merge it "
            "with peftly.merge(model) and write it with model.save_pretrained"
        )
    check_mergeable(model, attached(model))
    check_room(plan.out, model, plan.dtype)
    examples = None if held_out is None else partial(held_out, plan.adapters[0], model, tokenizer)
    samples = samples_for(model, tokenizer, None if text is None else Path(text), examples)
    log(f"comparing on {len(samples.samples)} {samples.source}")
    in_dtype = logits_of(model, samples.samples)
    if plan.dtype != torch.float32:
        del model, examples
        model, tokenizer = _open(plan, torch.float32, plan.into)
    outputs = outputs_of(model, tokenizer, samples.samples)
    rounding = relative_difference(in_dtype, outputs.logits)
    fp32_rounding = rounding_in_fp32(model, samples.samples, outputs.logits)
    return _AdaptedModel(model, tokenizer, samples, outputs, rounding, fp32_rounding)


def _open(plan: _MergePlan, dtype: "torch.dtype", into: Into) -> Base:
    """Open the adapters on their base in `dtype`, with dequantised weights."""
    base = load_together(plan.adapters, plan.base, dtype=dtype, quantization="none" if into == "original" else None)
    dequantize(base.model)
    if plan.weights is not None:
        weight_adapters(base.model, dict(zip(attached(base.model), plan.weights, strict=True)))
    return base


def _ingredients(plan: _MergePlan, model: Any) -> tuple[list[str], list[str]]:
    """Return the methods of the adapters and the settings of each adapter, for the model card."""
    methods, settings = [one.config.name for one in attached(model).values()], settings_of(model, plan.weights)
    if plan.quantization is not None and plan.into == "trained":
        settings.append(f"- the base: its linear layers dequantised from {plan.quantization.kind}")
    return methods, settings


def _merge(
    model: Any, samples: Samples, before: Outputs, dtype: "torch.dtype", log: Callable[[str], None]
) -> "tuple[float, list[torch.Tensor]]":
    """Merge all adapters of a model and round its weights.

    Returns:
        Relative difference of the logits that merging made in fp32, and the logits after rounding.
    """
    for line in merge_adapters(model, attached(model)):
        log(line)
    merging = relative_difference(logits_of(model, samples.samples), before.logits)
    _round(model, dtype)
    return merging, logits_of(model, samples.samples)


def _over_quantized_base(plan: _MergePlan, samples: Samples, before: Outputs) -> tuple[float, float | None]:
    """Return the relative difference of the logits over the quantised base of training, and the perplexity there."""
    import torch

    logits = logits_of(_open(plan, torch.float32, "trained").model, samples.samples)
    (perplexity,) = perplexities(samples, logits) or (None,)
    return relative_difference(logits, before.logits), perplexity


def _round(model: Any, dtype: "torch.dtype") -> None:
    """Round the saved tensors of a model to `dtype`. The tensors stay in fp32, so the computation does too."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
