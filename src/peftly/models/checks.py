"""What a base cannot be asked for, found out before it is opened."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError
from peftly.kernels import has_bitsandbytes, import_bitsandbytes
from peftly.models.quantization import Quantization

if TYPE_CHECKING:
    from peftly.data import TaskName

__all__ = ["check_device_map", "check_gguf", "check_quantization"]

_WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
"""How accelerate spreads a model."""


def check_gguf(spec: str, quantization: Quantization | None, task: "TaskName | None") -> None:
    """Do nothing if a GGUF file can be opened for this.

    Raises:
        BaseModelError: it cannot.
    """
    if quantization is not None:
        raise BaseModelError(
            f"{spec} is a GGUF file, which is opened unpacked: leave quantization={quantization.kind} out"
        )
    if task not in (None, "causal_lm"):
        raise BaseModelError(
            f"{spec} is a GGUF file, which opens for causal_lm only: {task} needs a folder or a Hub id"
        )


def check_device_map(
    spec: str, device_map: str | Mapping[str, Any], device: Any, quantization: Quantization | None, *, gguf: bool
) -> None:
    """Do nothing if a base can be spread like that.

    Raises:
        BaseModelError: it cannot.
    """
    if gguf:
        raise BaseModelError(f"{spec} is a GGUF file, which opens on one device: leave device_map out")
    if device is not None:
        raise BaseModelError(f"device={device!r} is for the whole base and device_map for its parts: give one of them")
    if isinstance(device_map, str):
        if device_map not in _WAYS:
            raise BaseModelError(f"device_map={device_map!r} is not one of {', '.join(_WAYS)}, nor a mapping of parts")
    elif not device_map:
        raise BaseModelError("device_map is empty: name a device for each part, or auto")
    elif quantization is not None:
        places = {str(place) for place in device_map.values()}
        waiting = places & {"cpu", "disk"}
        if waiting and places != {"cpu"}:
            raise BaseModelError(
                f"quantised layers do not wait on {min(waiting)} for their calls: "
                "let device_map name accelerators only, or leave quantization out"
            )


def check_quantization(spec: str, config: Any, wanted: Quantization | None) -> None:
    """Do nothing if a base can be opened quantised, by what is wanted or by what its own files say.

    Raises:
        BaseModelError: bitsandbytes is missing, or there is nothing left to quantise.
    """
    own = getattr(config, "quantization_config", None) or {}
    method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
    if wanted is not None and method is not None:
        raise BaseModelError(f"{spec} is quantised already, by {method}: leave quantization={wanted.kind} out")
    if wanted is None and method != "bitsandbytes":
        return
    if not has_bitsandbytes():
        what = f"{spec}, which is quantised," if wanted is None else f"quantization={wanted.kind}"
        raise BaseModelError(f"{what} needs bitsandbytes: pip install 'peftly[quant]'")
    import_bitsandbytes()  # before transformers does it less carefully
