"""The model that a command works with: a run, an adapter, or an untouched base."""

from typing import TYPE_CHECKING, Annotated

import typer

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["RunArgument", "open_model"]

RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run folder, an adapter folder or a Hub id.")
]


def open_model(run: str | None, base: str | None) -> "OpenRun":
    """Open the one that is named.

    Raises:
        ConfigError: none is named, or both.
    """
    from peftly.runs import open_base, open_run

    if (run is None) == (base is None):
        raise ConfigError("name a run, or an untouched base with --base; one of the two")
    return open_run(run) if run is not None else open_base(str(base))
