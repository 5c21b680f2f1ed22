"""Changes to the JSON files of a saved adapter, which then has no checksums, like one of version 0.1.0."""

import json
from pathlib import Path

CONFIG, NOTES = "adapter_config.json", "peftly.json"


def without_checksums(folder: Path) -> Path:
    """Remove the checksums of an adapter, and return its folder."""
    return _edit(folder, NOTES, {})


def edit_config(folder: Path, **changes) -> Path:
    """Change entries of `adapter_config.json`, and remove the checksums."""
    if (folder / NOTES).exists():
        without_checksums(folder)
    return _edit(folder, CONFIG, changes)


def edit_notes(folder: Path, **changes) -> Path:
    """Change entries of `peftly.json`, and remove the checksums."""
    return _edit(folder, NOTES, changes)


def _edit(folder: Path, name: str, changes: dict) -> Path:
    content = json.loads((folder / name).read_text()) | changes
    content.pop("checksums", None)
    (folder / name).write_text(json.dumps(content))
    return folder
