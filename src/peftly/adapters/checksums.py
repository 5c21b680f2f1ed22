"""Checksums of the files of an adapter: files of two adapters that were mixed, and flipped bits, are noticed.

`peftly.json` holds the SHA-256 of the files with tensors, of the content of `adapter_config.json` without the entries
that people edit, and of its own content. Adapters of PEFT and of version 0.1.0 have no checksums.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftly.adapters.files import CHECKSUMS, CONFIG, NOTES, TENSORS, TRAINING, read_json
from peftly.errors import AdapterError

__all__ = ["check_file", "check_json", "with_checksums"]

_EDITED_BY_HAND = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Entries of `adapter_config.json` without a checksum."""


def with_checksums(folder: Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `peftly.json` with the checksums of an adapter.

    Args:
        folder: folder that holds the other files of the adapter.
        notes: content without checksums.
    """
    content = {key: value for key, value in notes.items() if key != CHECKSUMS}
    files = {name: _of_file(folder / name) for name in (TENSORS, TRAINING) if (folder / name).is_file()}
    checksums = {CONFIG: _of_config(read_json(folder / CONFIG)), NOTES: _of_json(content), **files}
    return {**content, CHECKSUMS: checksums}


def check_json(folder: Path, peft_config: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, str]:
    """Compare the JSON files of an adapter with their checksums.

    Args:
        folder: folder of the adapter.
        peft_config: content of `adapter_config.json`, as it is in the file.
        notes: content of `peftly.json`, as it is in the file.

    Returns:
        Checksum of each file, by its name; empty for an adapter without checksums.

    Raises:
        AdapterError: a file was changed after the adapter was saved, or the checksums are damaged.
    """
    if CHECKSUMS not in notes:
        return {}
    checksums: Any = notes[CHECKSUMS]
    are_complete = isinstance(checksums, dict) and {CONFIG, NOTES, TENSORS} <= checksums.keys()
    if not are_complete or not all(_is_checksum(value) for value in checksums.values()):
        raise AdapterError(f"{folder / NOTES} is damaged: its {CHECKSUMS} are incomplete")
    if checksums[NOTES] != _of_json({key: value for key, value in notes.items() if key != CHECKSUMS}):
        raise AdapterError(
            f"{folder / NOTES} was changed after it was saved; copy the adapter again or, if the change was meant, "
            f"delete its {CHECKSUMS}"
        )
    if checksums[CONFIG] != _of_config(peft_config):
        raise _changed(folder, CONFIG)
    return dict(checksums)


def check_file(folder: Path, name: str, checksums: Mapping[str, str]) -> None:
    """Compare a file with tensors with its checksum.

    Args:
        folder: folder of the adapter.
        name: name of the file.
        checksums: result of `check_json`.

    Raises:
        AdapterError: the file was changed after the adapter was saved.
    """
    if checksums and (folder / name).is_file() and checksums.get(name) != _of_file(folder / name):
        raise _changed(folder, name)


def _changed(folder: Path, name: str) -> AdapterError:
    leftover = f" and {TRAINING}" if (folder / TRAINING).is_file() else ""
    return AdapterError(
        f"{folder / name} is not the file that {folder / NOTES} was saved with; copy the adapter again or, if another "
        f"tool such as PEFT saved over it or the change was meant, delete {NOTES}{leftover}"
    )


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}") from None


def _of_config(peft_config: Mapping[str, Any]) -> str:
    return _of_json({key: value for key, value in peft_config.items() if key not in _EDITED_BY_HAND})


def _of_json(value: Mapping[str, Any]) -> str:
    """Return the checksum of a JSON object, whatever the order of its keys and the layout of its file."""
    values = json.loads(json.dumps(value))  # keys that are no strings become strings before they are sorted
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
