"""Several adapters on disk made one: their weighted sum as a LoRA in a folder of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from peftly.adapters import (
    CARD,
    CONFIG,
    LABELS,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TOGETHER,
    TRAINING,
    adapter_card,
    attached,
    base_requirements,
    called,
    check_weights,
    corrects_quantization,
    find_adapters,
    load_together,
    read_notes,
    save_adapter,
    training_quantization,
)
from peftly.errors import ConfigError
from peftly.merging.combine import check_method, combine, left_out
from peftly.models import stored_dtype
from peftly.utils import check_place

if TYPE_CHECKING:
    from peftly.methods import LoRA

__all__ = ["Combined", "save_combined"]

NAME = "combined"
"""Of the new adapter in the model."""

WRITTEN = (CARD, CONFIG, NOTES, TENSORS, TRAINING)
OWN_NOTES = ("method", TOGETHER, LABELS, QUANTIZATION)
"""Those of one adapter alone, and those that `save_combined` knows otherwise."""

MEANINGS = {"row_format": "how a row becomes text, so give generate its text with --prompt"}


class Combined(NamedTuple):
    """What has been written.

    Attributes:
        folder: where.
        config: the settings of the new adapter.
        parameters: how many numbers it has.
        left_out: how far it is from the weighted sum, ‖difference‖ / ‖sum‖ of all layers.
    """

    folder: Path
    config: "LoRA"
    parameters: int
    left_out: float


def save_combined(
    adapters: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    method: Literal["linear", "svd"] = "linear",
    rank: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Combined:
    """Write a LoRA adapter that is the weighted sum of several.

    Args:
        adapters: each as `load` takes it, for one base; their changes must be sums (LoRA).
        out: the folder, which is missing or empty.
        weights: how much of each, in their order; None: all of each, as they work when all are on.
        method, rank: as for `combine`.
        overwrite: replace the adapter that the out folder holds.
        say: takes one line about what is happening.

    Raises:
        AdapterError, BaseModelError, MethodError: the adapters cannot be opened together, or not be added.
        ConfigError: the folder cannot be had, or there is nothing to combine.
    """
    target = Path(out).expanduser().resolve()
    _check_out(target, overwrite=overwrite)
    check_method(method, rank)
    if not adapters:
        raise ConfigError("there is no adapter to combine; name several")
    found = find_adapters(adapters)
    names, folders = called(found), list(found.values())
    check_weights(weights, names)
    if len(names) == 1 and weights is None and rank is None:
        raise ConfigError(f"{names[0]} is one adapter: name another, or give its weight, or a lower rank for svd")
    if target in (folder.resolve() for folder in folders):
        raise ConfigError(f"out: {target} is one of the adapters to combine; choose another folder")
    base = base_requirements(folders[0]).base
    if (correction := corrects_quantization(folders)) is not None:
        raise ConfigError(
            f"{correction} started from what quantising its base has cost (init: qera), so it works whole and alone; "
            "combine adapters with another init"
        )
    model = load_together(folders, dtype=stored_dtype(base), device="cpu", quantization="none").model
    shares = dict(zip(attached(model), weights or [1.0] * len(names), strict=True))
    combine(model, shares, name=NAME, method=method, rank=rank)
    adapter: Any = attached(model)[NAME]
    notes, lines = _common_notes(folders)
    for line in lines:
        say(line)
    made_of = [f"{weight:g} times {name}" for name, weight in zip(names, shares.values(), strict=True)]
    save_adapter(model, target, name=NAME, notes=notes, card=adapter_card(base, adapter.config, made_of))
    parameters = sum(tensor.numel() for tensor in adapter.own_tensors().values())
    return Combined(target, adapter.config, parameters, left_out(model, shares, NAME))


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a combined adapter cannot have; nothing is changed."""
    check_place(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / CONFIG).is_file():
        raise ConfigError(f"out: {out} exists and holds files that are no adapter; choose a new or empty folder")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in WRITTEN)
    if foreign:
        raise ConfigError(f"out: {out} holds {foreign[0]}, which is no file of an adapter; choose another folder")
    if not overwrite:
        raise ConfigError(f"out: {out} holds an adapter; choose another folder, or replace it with --overwrite")


def _common_notes(folders: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """Return what is noted alike beside all adapters, and lines on what is not."""
    notes = [read_notes(folder) for folder in folders]
    keys = dict.fromkeys(key for one in notes for key in one if key not in OWN_NOTES)
    common = {key: notes[0][key] for key in keys if all(key in one and one[key] == notes[0].get(key) for one in notes)}
    kept = training_quantization(folders[0])
    quantization = {} if kept is None else {QUANTIZATION: kept.model_dump(mode="json")}
    lines = [f"not noted, as the adapters differ in it: {MEANINGS.get(key, key)}" for key in keys if key not in common]
    return {**common, **quantization}, lines
