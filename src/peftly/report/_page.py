"""What both pages need: the template engine, JSON files, and a machine in words."""

import json
from pathlib import Path
from typing import Any

from peftly.utils import bytes_text

__all__ = ["machine_lines", "read_json", "render"]


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped unless it is `Markup`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader("peftly.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return engine.get_template(template).render(**values)


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one if the file is not there: a report says what there is."""
    if not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def machine_lines(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return versions and hardware as names and values."""
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
