"""`peftly schema`."""

from pathlib import Path
from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries
from peftly.errors import ConfigError

__all__ = ["schema"]


def schema(
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="JSON file to write. Default: print the schema.")
    ] = None,
) -> None:
    """Print the JSON Schema of a YAML configuration, with which an editor completes and checks its settings."""
    if out is not None:
        _check_file(Path(out))
    silence_libraries()
    from peftly.runs import config_schema
    from peftly.utils import json_text, write_json

    found = config_schema()
    if out is None:
        echo(json_text(found), nl=False)
        return
    write_json(Path(out), found)
    echo(f"wrote {out}")
    echo(f"first line of a YAML file, for the editor: # yaml-language-server: $schema={out}")


def _check_file(file: Path) -> None:
    """Refuse a path that cannot be written, and a file that is no schema."""
    if file.is_dir():
        raise ConfigError(f"--out {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise ConfigError(f"--out {file}: there is no folder {file.parent}")
    if file.exists() and '"$schema"' not in file.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"--out {file} exists and is no schema; name another file")
