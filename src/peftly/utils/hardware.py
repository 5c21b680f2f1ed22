"""What a model computes on and in, where nobody has said it."""

from typing import TYPE_CHECKING

from peftly.errors import BaseModelError

if TYPE_CHECKING:
    import torch

__all__ = ["resolve_device", "resolve_dtype"]

_DTYPES = ("float32", "bfloat16", "float16")


def resolve_dtype(dtype: "str | torch.dtype" = "auto", device: "str | torch.device | None" = None) -> "torch.dtype":
    """Return the dtype that `dtype` means on `device`.

    `auto` is bfloat16 where the hardware multiplies in it (CUDA from Ampere on; CPUs with AVX512-BF16 or AMX, four
    times as fast as fp32), else float32.

    Raises:
        BaseModelError: `dtype` is neither `auto`, nor `float32`, `bfloat16` or `float16`, as a name or as torch's own.
    """
    import torch

    known: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES}
    if isinstance(dtype, torch.dtype) and dtype in known.values():
        return dtype
    if dtype in known:
        return known[str(dtype)]
    if dtype != "auto":
        raise BaseModelError(f"dtype={dtype!r} is not one of auto, {', '.join(known)}")
    place = resolve_device(device)
    if place.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = place.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def resolve_device(device: "str | torch.device | None" = None) -> "torch.device":
    """Return the device that `device` means; None is the CUDA device if there is one, else the CPU.

    Apple's `mps` works when it is asked for. It is never chosen unasked: what is promised here about equal results was
    not measured on it.

    Raises:
        BaseModelError: torch has no such device here.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BaseModelError(f"device={device!r} is not a device: use cpu, cuda, cuda:1, …") from error
    if place.type == "cuda" and not (place.index or 0) < torch.cuda.device_count():
        raise BaseModelError(f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise BaseModelError(f"device={device!r} is not there: torch sees no Apple GPU")
    return place
