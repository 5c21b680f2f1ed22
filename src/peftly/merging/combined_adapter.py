"""Combination of several saved adapters to one saved LoRA adapter."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from peftly.adapters import (
    ADAPTER_FILES,
    BASE,
    CONFIG,
    LABELS,
    METHOD,
    QUANTIZATION,
    ROW_FORMAT,
    TASK,
    TOGETHER,
    TOKENIZER,
    TOKENIZER_FILES,
    AdapterSet,
    AdapterSource,
    adapter_card,
    adapter_names,
    attached,
    check_number_of_weights,
    correcting_adapter,
    load_together,
    open_compatible_adapters,
    save_adapter,
    tokenizer_to_save,
)
from peftly.errors import ConfigError
from peftly.merging.combine import check_method, combine, left_out
from peftly.models import output_kind, pooling_of, stored_dtype
from peftly.utils import check_output_folder

if TYPE_CHECKING:
    from peftly.methods import LoRA

__all__ = ["Combined", "save_combined"]

_NAME = "combined"
"""Name of the new adapter in the model."""

_INDIVIDUAL_NOTES = (METHOD, TOGETHER, LABELS, QUANTIZATION, BASE, TASK, TOKENIZER)
"""Keys of notes that are not copied: they describe one adapter, or `save_combined` writes them itself."""

_MEANINGS = {ROW_FORMAT: "the row format, so give generate its text with --prompt"}
"""Descriptions of notes for people."""


class Combined(NamedTuple):
    """Result of a combination.

    Attributes:
        folder: folder of the new adapter.
        config: settings of the new adapter.
        parameters: number of its parameters.
        left_out: relative error to the weighted sum, ‖sum - adapter‖ / ‖sum‖ over all layers.
    """

    folder: Path
    config: "LoRA"
    parameters: int
    left_out: float


def save_combined(
    adapters: Sequence[AdapterSource],
    out: str | Path,
    *,
    base: str | Path | None = None,
    weights: Sequence[float] | None = None,
    method: Literal["linear", "svd"] = "linear",
    rank: int | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Combined:
    """Write a LoRA adapter that is the weighted sum of several adapters.

    Args:
        adapters: adapters of one base, as `load` takes them, whose updates can be added (LoRA).
        out: output folder, missing or empty.
        base: their base, where it is not the one that they name, or has moved.
        weights: weight of each adapter; None: 1 for each, which equals all adapters active together.
        method, rank: see `combine`.
        overwrite: replace an adapter in `out`.
        log: function that receives lines on the progress.

    Returns:
        The folder, settings, size and relative error of the new adapter.

    Raises:
        AdapterError, BaseModelError, MethodError: the adapters cannot be opened together or added.
        ConfigError: `out` cannot be used, or there is nothing to combine.
    """
    target = Path(out).expanduser().resolve()
    check_output_folder(
        target,
        kind="an adapter",
        is_ours=lambda folder: (folder / CONFIG).is_file(),
        may_hold=lambda entry: entry.name in (*ADAPTER_FILES, *TOKENIZER_FILES),
        overwrite=overwrite,
    )
    check_method(method, rank)
    if not adapters:
        raise ConfigError("there is no adapter to combine; name several")
    by_source = open_compatible_adapters(adapters, None if base is None else str(base))
    names, opened = adapter_names(by_source), list(by_source.values())
    check_number_of_weights(weights, names)
    if len(names) == 1 and weights is None and rank is None:
        raise ConfigError(f"{names[0]} is one adapter: name another, or give its weight, or a lower rank for svd")
    if target in (adapter_set.path.resolve() for adapter_set in opened):
        raise ConfigError(f"out: {target} is one of the adapters to combine; choose another folder")
    if (correcting := correcting_adapter(opened)) is not None:
        raise ConfigError(
            f"{correcting} corrects the quantisation error of its base (init: qera), so it cannot be added to "
            "others or weighted; combine adapters with another init"
        )
    resolved = opened[0].base
    loaded = load_together(opened, resolved, dtype=stored_dtype(resolved), device="cpu", quantization="none")
    model, own_tokenizer = loaded.model, tokenizer_to_save(loaded.model, loaded.tokenizer)
    weight_of = dict(zip(attached(model), weights or [1.0] * len(names), strict=True))
    combine(model, weight_of, name=_NAME, method=method, rank=rank)
    adapter: Any = attached(model)[_NAME]
    notes, lines = _common_notes(opened)
    for line in lines:
        log(line)
    made_of = [f"{weight:g} times {name}" for name, weight in zip(names, weight_of.values(), strict=True)]
    labels = opened[0].requirements.labels
    outputs = output_kind(model.config) if labels else "class"
    name = resolved.name
    card = adapter_card(name, adapter.config, made_of, labels=labels, pooling=pooling_of(model), outputs=outputs)
    save_adapter(model, target, name=_NAME, notes=notes, card=card, tokenizer=own_tokenizer)
    parameters = sum(tensor.numel() for tensor in adapter.file_tensors().values())
    return Combined(target, adapter.config, parameters, left_out(model, weight_of, _NAME))


def _common_notes(opened: Sequence[AdapterSet]) -> tuple[dict[str, Any], list[str]]:
    """Return the notes that all adapters share, and a line for the user on each other note."""
    first, *others = (adapter_set.notes for adapter_set in opened)
    keys = dict.fromkeys(key for notes in (first, *others) for key in notes if key not in _INDIVIDUAL_NOTES)
    common = {
        key: first[key]
        for key in keys
        if key in first and all(key in notes and notes[key] == first[key] for notes in others)
    }
    lines = [f"not saved, as the adapters differ: {_MEANINGS.get(key, key)}" for key in keys if key not in common]
    if (quantization := opened[0].quantization) is not None:
        common[QUANTIZATION] = quantization.model_dump(mode="json")
    return common, lines
