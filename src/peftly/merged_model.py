"""A merged model as a folder that plain transformers opens: adapters folded into their base, written and read back.

Nothing appears under the folder's name before what was read back says what the adapted model says; see `parity`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from peftly.adapt import attached
from peftly.adapter_home import Home, find_adapter, home_of, trained_over
from peftly.base import Base, base_config
from peftly.checkpoint import load, load_adapter
from peftly.errors import AdapterError, ConfigError, MergeError
from peftly.hardware import resolve_dtype
from peftly.merged_card import CARD, copy_licences, merged_card, settings_of
from peftly.merged_folder import check_out, check_room, read_back, whole, write
from peftly.merging import check_foldable, fold, weigh
from peftly.methods._quantized import dequantize
from peftly.parity import Answers, Parity, answers_of, compare, logits_of, perplexities, relative_difference
from peftly.parity_samples import Samples, samples_for
from peftly.tasks import task_of

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
    if into not in get_args(Into):
        raise ConfigError(f"into={into!r} is not one of {', '.join(get_args(Into))}")
    several = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    if not several:
        raise ConfigError("there is no adapter to merge; name one")
    target = Path(out).expanduser().resolve()
    check_out(target, max_shard_size, overwrite=overwrite)
    first = find_adapter(several[0])
    spec, kept = home_of(first).base, trained_over(first)
    number = resolve_dtype(dtype or _stored_dtype(spec))
    own_text = None if text is None else Path(text)
    if into == "original" and kept is None:
        raise ConfigError(f"into=original: {several[0]} was trained over the base as its files have it; leave it out")
    model, tokenizer, samples, before, rounding = _adapted(several, number, weights, into, own_text, target, say)
    task = task_of(model)
    methods, settings = [one.config.name for one in attached(model).values()], settings_of(model, weights)
    if kept is not None and into == "trained":
        settings.append(f"- the base: its linear layers as {kept.kind} keeps them, unpacked")
    for line in fold(model, attached(model)):
        say(line)
    merging = relative_difference(logits_of(model, samples.samples), before.logits)
    _round(model, number)
    rounded = logits_of(model, samples.samples)
    quantized = _over_quantized(several, weights, samples, before) if into == "original" else None
    with whole(target) as folder:
        write(model, tokenizer, number, folder, max_shard_size)
        del model
        merged, tokenizer = read_back(folder, task)
        parity = compare(merged, tokenizer, samples, before, rounded, rounding=rounding, merging=merging)
        parity = replace(parity, quantized=quantized)
        if parity.complaint is not None and not force:
            raise MergeError(
                f"the merged model is not what the adapted one is: {parity.complaint}; nothing was written "
                "(--force keeps it all the same)"
            )
        say(copy_licences(spec, folder))
        (folder / CARD).write_text(merged_card(spec, methods, settings, parity), encoding="utf-8")
    return parity


class _Adapted(NamedTuple):
    """The adapted model in fp32, and what it says of the samples."""

    model: Any
    tokenizer: Any
    samples: Samples
    before: Answers
    rounding: float
    """How far its logits move when it is computed in the dtype that is wanted."""


def _adapted(
    adapters: Sequence[str | Path],
    dtype: "torch.dtype",
    weights: Sequence[float] | None,
    into: Into,
    text: Path | None,
    out: Path,
    say: Callable[[str], None],
) -> _Adapted:
    """Open the adapters in `dtype` and in fp32, one after the other, unless they cannot be merged into `out`."""
    import torch

    model, tokenizer = _opened(adapters, dtype, weights, into)
    check_foldable(model, attached(model))
    check_room(out, model, dtype)
    samples = samples_for(adapters[0], model, tokenizer, text)
    say(f"comparing on {len(samples.samples)} {samples.source}")
    in_dtype = logits_of(model, samples.samples)
    if dtype != torch.float32:
        del model
        model, tokenizer = _opened(adapters, torch.float32, weights, into)
    before = answers_of(model, tokenizer, samples.samples)
    return _Adapted(model, tokenizer, samples, before, relative_difference(in_dtype, before.logits))


def _over_quantized(
    adapters: Sequence[str | Path], weights: Sequence[float] | None, samples: Samples, before: Answers
) -> tuple[float, float | None]:
    """Return how far answers over the base that adapters were trained over are away, and their perplexity there."""
    import torch

    logits = logits_of(_opened(adapters, torch.float32, weights, "trained").model, samples.samples)
    (perplexity,) = perplexities(samples, logits) or (None,)
    return relative_difference(logits, before.logits), perplexity


def _opened(adapters: Sequence[str | Path], dtype: "torch.dtype", weights: Sequence[float] | None, into: Into) -> Base:
    """Open adapters on their base, computed in `dtype`, with weights as plain numbers that can be merged into."""
    base = load(adapters[0], dtype=dtype, quantization="none" if into == "original" else None)
    dequantize(base.model)
    home = home_of(find_adapter(adapters[0]))
    for number, other in enumerate(adapters[1:], start=2):
        folder = find_adapter(other)
        if (found := home_of(folder)) != home:
            raise AdapterError(f"{adapters[0]} is for {_words(home)}, and {other} for {_words(found)}")
        if trained_over(folder) != trained_over(find_adapter(adapters[0])):
            raise AdapterError(f"{adapters[0]} and {other} were not trained over the same quantisation of their base")
        load_adapter(base.model, folder, name=f"adapter_{number}")
    if weights is not None:
        names = [*attached(base.model)]
        if len(weights) != len(names):
            raise ConfigError(f"weights: {len(weights)} were given for {len(names)} adapters ({', '.join(names)})")
        weigh(base.model, dict(zip(names, weights, strict=True)))
    return base


def _words(home: Home) -> str:
    labels = f" of {', '.join(home.labels)}" if home.labels else ""
    return f"{home.base}{f' ({home.task}{labels})' if home.task else ''}"


def _stored_dtype(spec: str) -> str:
    """Return what a base is stored in, as its config says; one that says nothing is of the days of fp32."""
    config = base_config(spec)
    if config is None:
        return "bfloat16"  # a GGUF file packs its numbers
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else "float32"


def _round(model: Any, dtype: "torch.dtype") -> None:
    """Round what a file keeps of a model to `dtype`; it stays in fp32, so that it is computed as exactly as before."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
