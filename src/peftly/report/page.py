"""Common parts of the pages: template engine, JSON files, and the description of a machine."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from peftly.utils import bytes_text, write_text

__all__ = ["machine_lines", "read_json", "write_page"]


def write_page(file: Path, template: str, **values: Any) -> Path:
    """Write an HTML page.

    Args:
        file: path of the page.
        template: file name of a template of this package.
        values: variables of the template. All values except `Markup` are escaped.

    Returns:
        `file`.
    """
    engine = Environment(
        loader=PackageLoader("peftly.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    write_text(file, engine.get_template(template).render(**values))
    return file


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty dict if the file does not exist."""
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def machine_lines(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return versions and hardware as pairs of name and value."""
    if not environment:
        return []
    versions = [(name, number or "not installed") for name, number in environment["versions"].items()]
    cuda = ", ".join(f"{device['name']} ({bytes_text(device['bytes'])})" for device in environment["cuda"])
    return [
        *versions,
        ("system", environment["system"]),
        ("CPU", f"{environment['cpu']}, {environment['cpu_cores']} cores"),
        ("CPU bf16", environment["cpu_bf16"] or "no"),
        ("CUDA", cuda or "no device"),
        ("threads", str(environment["threads"])),
    ]
