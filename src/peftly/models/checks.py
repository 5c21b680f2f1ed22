"""Requests that a base cannot serve, refused before the base is opened."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError
from peftly.kernels import has_bitsandbytes, import_bitsandbytes
from peftly.models.quantization import Quantization

if TYPE_CHECKING:
    pass

__all__ = ["check_device_map", "check_gguf", "check_quantization"]

_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Accelerate's strategies for distributing a model over devices."""


def check_gguf(name: str, quantization: Quantization | None, task: str | None) -> None:
    """Do nothing if a GGUF file can be opened for this task.

    Args:
        name: name of the base, for messages.
        quantization: wanted quantization.
        task: wanted task, or wanted class of transformers.

    Raises:
        BaseModelError: the file cannot be quantized again, or does not serve the task.
    """
    if quantization is not None:
        raise BaseModelError(
            f"{name} is a GGUF file, which is opened unpacked: leave quantization={quantization.kind} out"
        )
    if task not in (None, "causal_lm"):
        raise BaseModelError(
            f"{name} is a GGUF file, which opens for causal_lm only: {task} needs a folder or a Hub id"
        )


def check_device_map(
    name: str, device_map: str | Mapping[str, Any], device: Any, quantization: Quantization | None, *, gguf: bool
) -> None:
    """Do nothing if a base can be distributed over devices like this.

    Args:
        name: name of the base, for messages.
        device_map, device, quantization: as `load_base` takes them.
        gguf: whether the base is a GGUF file.

    Raises:
        BaseModelError: the device map contradicts another argument or is empty, or quantized layers would be offloaded.
    """
    if gguf:
        raise BaseModelError(f"{name} is a GGUF file, which opens on one device: leave device_map out")
    if device is not None:
        raise BaseModelError(f"device={device!r} is for the whole base and device_map for its parts: give one of them")
    if isinstance(device_map, str):
        if device_map not in _STRATEGIES:
            raise BaseModelError(
                f"device_map={device_map!r} is not one of {', '.join(_STRATEGIES)}, nor a mapping of parts"
            )
    elif not device_map:
        raise BaseModelError("device_map is empty: name a device for each part, or auto")
    elif quantization is not None:
        devices = {str(part_device) for part_device in device_map.values()}
        offloaded = devices & {"cpu", "disk"}
        if offloaded and devices != {"cpu"}:
            raise BaseModelError(
                f"quantised layers cannot be offloaded to {min(offloaded)}: "
                "let device_map name accelerators only, or leave quantization out"
            )


def check_quantization(name: str, config: Any, wanted: Quantization | None) -> None:
    """Do nothing if a base can be opened quantized, because it is wanted or because its files are.

    Args:
        name: name of the base, for messages.
        config: config of the base.
        wanted: wanted quantization; None: as in the base's files.

    Raises:
        BaseModelError: bitsandbytes is missing, or the base's files are quantized already.
    """
    of_files = getattr(config, "quantization_config", None) or {}
    method = of_files.get("quant_method") if isinstance(of_files, dict) else getattr(of_files, "quant_method", None)
    if wanted is not None and method is not None:
        raise BaseModelError(f"{name} is quantised already, by {method}: leave quantization={wanted.kind} out")
    if wanted is None and method != "bitsandbytes":
        return
    if not has_bitsandbytes():
        subject = f"{name}, which is quantised," if wanted is None else f"quantization={wanted.kind}"
        raise BaseModelError(f"{subject} needs bitsandbytes: pip install 'peftly[quant]'")
    import_bitsandbytes()  # before transformers imports it, without the checks of ours
