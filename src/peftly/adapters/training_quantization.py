"""Quantization of the base that an adapter was trained over, where the present base has another one or none.

An adapter of QLoRA fits the rounded weights of its base. Over the plain weights its outputs are off, by as much as the
adapter itself changes them (docs/qlora.md).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from peftly.adapters.files import CARD
from peftly.adapters.state import TrainedOver, attached, state_of
from peftly.models import Quantization, quantization_of

if TYPE_CHECKING:
    from peftly.adapters.folder import AdapterFolder

__all__ = ["other_quantization", "quantization_advice", "remember_training", "training_quantization"]

_IN_CARD = re.compile(r"^- _?(load_in_[48]bit|bnb_4bit_quant_type): (True|nf4|fp4)\s*$", re.MULTILINE)
"""Lines of the settings of bitsandbytes that PEFT and transformers' Trainer write into a model card."""
_IN_BASE_NAME = re.compile(r"bnb-([48])bit", re.IGNORECASE)
"""Names of bases on the Hub whose files are quantized by bitsandbytes."""


def other_quantization(model: Any, folder: AdapterFolder) -> Quantization | None:
    """Return the quantization of the base in the training of an adapter, if the base of `model` has another.

    Args:
        model: a model, quantized, dequantised or plain.
        folder: an adapter on disk. Its notes name the quantization; PEFT writes none, but its model card may hold the
            settings, and the name of the base may tell.

    Returns:
        None if the quantizations are equal, or if nothing is known.
    """
    noted = _noted(model, folder)
    if noted is None:
        return None
    present = quantization_of(model)
    if present is None and getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        return None  # of files that are quantized, by bitsandbytes or another library
    return None if present is not None and present.kind == noted.kind else noted


def quantization_advice(subject: str, quantization: str, model: Any) -> str:
    """Return one line about an adapter that was trained over another quantization than that of `model`.

    Args:
        subject: the adapter, for the reader.
        quantization: kind of the result of `other_quantization`.
        model: the model that has the adapter.
    """
    present = quantization_of(model)
    base = "is not quantised" if present is None else f"is in {present.kind}"
    return (
        f"{subject} was trained over a base in {quantization}, and this base {base}, so its answers are off; open the "
        f"base with peftly.load_base(..., quantization={quantization!r}) or both with peftly.load(..., quantization="
        f"{quantization!r}), and merge with peftly.merge(peftly.dequantize(model))"
    )


def remember_training(model: Any, name: str, quantization: Quantization) -> None:
    """Remember the quantization of the base in the training of an adapter, which has just been loaded."""
    state_of(model).other_quantizations[name] = TrainedOver(quantization, _versions(model, name))


def training_quantization(model: Any, name: str) -> Quantization | None:
    """Return the quantization of the base over which an adapter was last trained: that of `model`, or an earlier one.

    Args:
        model: model with the adapter.
        name: name of the adapter.
    """
    earlier = state_of(model).other_quantizations.get(name)
    if earlier is not None and earlier.versions == _versions(model, name):
        return earlier.quantization
    return quantization_of(model)


def _versions(model: Any, name: str) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in attached(model)[name].parameters().values())


def _noted(model: Any, folder: AdapterFolder) -> Quantization | None:
    if folder.quantization is not None:
        return folder.quantization
    if folder.notes:  # written by peftly, which notes every quantization but that of files
        return None
    kind: Any = _kind_in_card(folder)
    if kind is None:
        bits = _IN_BASE_NAME.search(folder.base_name or "")
        if bits is None or folder.base_name == getattr(getattr(model, "config", None), "name_or_path", None):
            return None
        kind = "nf4" if bits[1] == "4" else "int8"
    return Quantization(kind=kind)


def _kind_in_card(folder: AdapterFolder) -> str | None:
    card = folder.path / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    settings: dict[str, str] = dict(_IN_CARD.findall(text))
    if settings.get("load_in_4bit") == "True":
        return settings.get("bnb_4bit_quant_type", "fp4")  # the default of bitsandbytes
    return "int8" if settings.get("load_in_8bit") == "True" else None
