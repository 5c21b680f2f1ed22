"""A merged model as a folder that plain transformers opens: adapters folded into their base, written and read back.

Nothing appears under the folder's name before what was read back says what the adapted model says; see `parity`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from peftly.adapters import (
    attached,
    base_requirements,
    called,
    check_mergeable,
    check_weights,
    corrects_quantization,
    find_adapters,
    load_together,
    merge_adapters,
    training_quantization,
    weight_adapters,
)
from peftly.errors import ConfigError, MergeError
from peftly.injection import dequantize
from peftly.merging.merged_card import CARD, copy_licences, merged_card, settings_of
from peftly.merging.merged_folder import check_out, check_room, read_back, write
from peftly.merging.parity import Answers, Parity, answers_of, compare, logits_of, perplexities, relative_difference
from peftly.merging.parity_samples import HeldOutExamples, Samples, samples_for
from peftly.models import Base, Quantization, stored_dtype, task_of
from peftly.utils import resolve_dtype, whole

if TYPE_CHECKING:
    import torch

__all__ = ["Into", "save_merged"]

Into = Literal["trained", "original"]


def save_merged(
    adapters: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    dtype: "str | torch.dtype | None" = None,
    weights: Sequence[float] | None = None,
    into: Into = "trained",
    text: str | Path | None = None,
    held_out: HeldOutExamples | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Fold an adapter, or several, into their base and write an ordinary model folder, whole or not at all.

    The arithmetic is in fp32, and its result is rounded once.

    Args:
        adapters: what `load` takes, or several of it for one base.
        out: the folder. It must not exist, or be empty.
        dtype: what the weights are rounded to, as `resolve_dtype` takes it; None: what the base is stored in.
        weights: how much of each adapter, in their order; for adapters whose changes are sums (LoRA).
        into: which base, where the adapter was trained over a quantised one: that one, its weights unpacked (trained),
            or the one it was made of (original). Then it is also said how far the two are apart.
        text: a file with a text in each line, to compare the model on before and after; None: see `samples_for`.
        held_out: source of the examples to compare on where no file is given; see `samples_for`.
        max_shard_size: of a weights file, such as "5GB".
        overwrite: replace a merged model that the out folder holds.
        force: keep a merged model that differs by more than rounding explains.
        say: takes one line about what is happening.

    Returns:
        How the answers of what was written compare with those of the adapted model.

    Raises:
        AdapterError, BaseModelError, MethodError: the adapters cannot be opened, or not be merged.
        ConfigError: the folder cannot be had, does not fit on the disk, or the weights are not as many as the adapters.
        MergeError: the merged model differs by more than rounding explains; it was not kept.
    """
    several = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    target = Path(out).expanduser().resolve()
    check_out(target, max_shard_size, overwrite=overwrite)
    job = _job(several, target, dtype, weights, into)
    model, tokenizer, samples, before, rounding = _adapted(
        job, lambda model, tokenizer: samples_for(model, tokenizer, None if text is None else Path(text), held_out), say
    )
    task, card = task_of(model), partial(merged_card, job.base, *_made_of(job, model))
    merging, rounded = _merge(model, samples, before, job.dtype, say)
    quantized = _over_quantized(job, samples, before) if into == "original" else None
    with whole(target) as folder:
        write(model, tokenizer, job.dtype, folder, max_shard_size)
        del model
        merged, tokenizer = read_back(folder, task)
        parity = compare(merged, tokenizer, samples, before, rounded, rounding=rounding, merging=merging)
        parity = replace(parity, quantized=quantized)
        if parity.complaint is not None and not force:
            raise MergeError(
                f"the merged model is not what the adapted one is: {parity.complaint}; nothing was written "
                "(--force keeps it all the same)"
            )
        say(copy_licences(job.base, folder))
        (folder / CARD).write_text(card(parity), encoding="utf-8")
    return parity


class _Job(NamedTuple):
    """What is to be merged.

    Attributes:
        folders: of the adapters.
        base: what their base is called.
        kept: how it was quantised when they were trained; None: it was not.
        into: as `save_merged` takes it.
        weights: how much of each adapter; None: all of it.
        dtype: of the merged model.
        out: its folder.
    """

    folders: tuple[Path, ...]
    base: str
    kept: Quantization | None
    into: Into
    weights: Sequence[float] | None
    dtype: "torch.dtype"
    out: Path


def _job(
    adapters: Sequence[str | Path],
    out: Path,
    dtype: "str | torch.dtype | None",
    weights: Sequence[float] | None,
    into: Into,
) -> _Job:
    """Find the adapters, and check what can be checked before anything is opened."""
    if into not in get_args(Into):
        raise ConfigError(f"into={into!r} is not one of {', '.join(get_args(Into))}")
    if not adapters:
        raise ConfigError("there is no adapter to merge; name one")
    found = find_adapters(adapters)
    check_weights(weights, called(found))
    folders = tuple(found.values())
    base, kept = base_requirements(folders[0]).base, training_quantization(folders[0])
    if into == "original" and kept is None:
        raise ConfigError(f"into=original: {adapters[0]} was trained over the base as its files have it; leave it out")
    if into == "original" and (correction := corrects_quantization(folders)) is not None:
        raise ConfigError(
            f"into=original: {correction} started from what quantising its base has cost, so it fits only the base "
            "that it was trained over: use into='trained'"
        )
    number = resolve_dtype(stored_dtype(base) if dtype is None else dtype)
    return _Job(folders, base, kept, into, weights, number, out)


class _Adapted(NamedTuple):
    """The adapted model in fp32, and what it says of the samples."""

    model: Any
    tokenizer: Any
    samples: Samples
    before: Answers
    rounding: float
    """How far its logits move when it is computed in the dtype that is wanted."""


def _adapted(job: _Job, choose_samples: Callable[[Any, Any], Samples], say: Callable[[str], None]) -> _Adapted:
    """Open the adapters in the wanted dtype and in fp32, one after the other, unless they cannot be merged."""
    import torch

    model, tokenizer = _opened(job, job.dtype, job.into)
    check_mergeable(model, attached(model))
    check_room(job.out, model, job.dtype)
    samples = choose_samples(model, tokenizer)
    say(f"comparing on {len(samples.samples)} {samples.source}")
    in_dtype = logits_of(model, samples.samples)
    if job.dtype != torch.float32:
        del model
        model, tokenizer = _opened(job, torch.float32, job.into)
    before = answers_of(model, tokenizer, samples.samples)
    return _Adapted(model, tokenizer, samples, before, relative_difference(in_dtype, before.logits))


def _opened(job: _Job, dtype: "torch.dtype", into: Into) -> Base:
    """Open adapters on their base, computed in `dtype`, with weights as plain numbers that can be merged into."""
    base = load_together(job.folders, dtype=dtype, quantization="none" if into == "original" else None)
    dequantize(base.model)
    if job.weights is not None:
        weight_adapters(base.model, dict(zip(attached(base.model), job.weights, strict=True)))
    return base


def _made_of(job: _Job, model: Any) -> tuple[list[str], list[str]]:
    """Return the methods that are to be merged, and how each adapter was made, for the card."""
    methods, settings = [one.config.name for one in attached(model).values()], settings_of(model, job.weights)
    if job.kept is not None and job.into == "trained":
        settings.append(f"- the base: its linear layers as {job.kept.kind} keeps them, unpacked")
    return methods, settings


def _merge(
    model: Any, samples: Samples, before: Answers, dtype: "torch.dtype", say: Callable[[str], None]
) -> "tuple[float, list[torch.Tensor]]":
    """Fold all adapters of a model into it and round it; return how far that moved it in fp32, and its logits then."""
    for line in merge_adapters(model, attached(model)):
        say(line)
    merging = relative_difference(logits_of(model, samples.samples), before.logits)
    _round(model, dtype)
    return merging, logits_of(model, samples.samples)


def _over_quantized(job: _Job, samples: Samples, before: Answers) -> tuple[float, float | None]:
    """Return how far answers over the base that adapters were trained over are away, and their perplexity there."""
    import torch

    logits = logits_of(_opened(job, torch.float32, "trained").model, samples.samples)
    (perplexity,) = perplexities(samples, logits) or (None,)
    return relative_difference(logits, before.logits), perplexity


def _round(model: Any, dtype: "torch.dtype") -> None:
    """Round what a file keeps of a model to `dtype`; it stays in fp32, so that it is computed as exactly as before."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
