"""The model of a command: a run or an adapter with its base, or an untouched base."""

from typing import TYPE_CHECKING

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["open_model"]


def open_model(run: str | None, base: str | None) -> "OpenRun":
    """Open a run or a base.

    Args:
        run: run folder, adapter folder or Hub id; None: `base` is given.
        base: base as `load_base` takes it: that of the run, instead of the one that it names, or an untouched one.

    Raises:
        ConfigError: neither is given.
    """
    from peftly.runs import open_base, open_run

    if run is None and base is None:
        raise ConfigError("give a run, or an untouched base with --base")
    return open_run(run, base=base) if run is not None else open_base(str(base))
