"""The model of a command: a run, an adapter, or an untouched base."""

from typing import TYPE_CHECKING

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["open_model"]


def open_model(run: str | None, base: str | None) -> "OpenRun":
    """Open a run or a base.

    Args:
        run: run folder, adapter folder or Hub id; None: `base` is given.
        base: untouched base, as `load_base` takes it; None: `run` is given.

    Raises:
        ConfigError: neither or both are given.
    """
    from peftly.runs import open_base, open_run

    if (run is None) == (base is None):
        raise ConfigError("give either a run, or an untouched base with --base")
    return open_run(run) if run is not None else open_base(str(base))
