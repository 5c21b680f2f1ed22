"""Checks of a run's settings against the processes that a launcher has started, before base and data are opened."""

from typing import Any

from peftly.errors import ConfigError
from peftly.runs.config import RunConfig
from peftly.training import num_processes
from peftly.utils import resolve_dtype

__all__ = ["check_processes", "loading_settings", "processes_line"]


def check_processes(config: RunConfig, *, resume: bool) -> None:
    """Refuse settings that do not fit the number of processes.

    Args:
        config: settings of the run.
        resume: whether the run continues, possibly on fewer processes than before.

    Raises:
        ConfigError: the settings name devices, of which each process has its own, or `train.fsdp` cannot be followed.
    """
    fsdp = config.train.fsdp
    if fsdp and config.quantization is not None:
        raise ConfigError("train.fsdp shards no quantised base; remove quantization, or set train.fsdp: false")
    if num_processes() == 1:
        if fsdp and not resume:
            raise ConfigError("train.fsdp shards the base over several processes; start them with torchrun")
        return
    if config.device_map is not None:
        raise ConfigError("device_map spreads one process over devices; remove it, or start one process")
    if ":" in (config.device or ""):
        raise ConfigError(f"device: {config.device} is one device, and every process has its own; remove device")
    if fsdp and config.device is not None:
        raise ConfigError("train.fsdp puts a part of the base on the device of each process; remove device")


def loading_settings(config: RunConfig) -> dict[str, Any]:
    """Return the dtype and the device with which `load_base` opens the base of a run.

    A base that will be sharded is opened in the CPU's memory, since it may be too large for one device.
    """
    if config.train.fsdp and num_processes() > 1:
        return {"dtype": resolve_dtype(config.dtype), "device": "cpu"}
    return {"dtype": config.dtype, "device": config.device}


def processes_line(config: RunConfig) -> str | None:
    """Return a line on the processes of a run; None for one process without `train.fsdp`."""
    count, fsdp = num_processes(), config.train.fsdp
    if count == 1:
        return "processes: 1, which holds the whole base, so train.fsdp changes nothing" if fsdp else None
    sharding = f" and 1/{count} of the frozen base" if fsdp else ""
    return f"processes: {count}, each with its share of the examples of every step{sharding}"
