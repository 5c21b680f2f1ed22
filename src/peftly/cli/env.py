"""`peftly env`."""

from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries

__all__ = ["env"]


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, devices and caches, for a bug report. The output contains no secrets."""
    silence_libraries()
    import json

    from peftly.report import machine_lines
    from peftly.utils import automatic_dtype, bytes_text, cache_folders, environment

    machine, caches = environment(), cache_folders()
    if as_json:
        echo(json.dumps({**machine, "dtype_auto": automatic_dtype(), "caches": caches}, indent=1))
        return
    lines = [*machine_lines(machine), ("dtype auto", automatic_dtype())]
    for name, cache in caches.items():
        size = "empty" if cache["bytes"] is None else bytes_text(cache["bytes"])
        lines.append((f"{name} cache", f"{cache['path']} ({size})"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        echo(f"{name:<{width}}  {value}")
