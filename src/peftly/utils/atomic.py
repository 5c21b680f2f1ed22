"""Text files that appear complete or not at all, and errors of full disks."""

import errno
import json
from pathlib import Path
from typing import Any

from peftly.utils.file_changes import write_new_file
from peftly.utils.transactions import replacing_file

__all__ = ["folder_bytes", "is_disk_full", "json_text", "json_values", "says_disk_full", "write_json", "write_text"]


def write_text(file: Path, text: str) -> None:
    """Write a text file, complete or not at all. It is on the disk when the function returns."""
    with replacing_file(file) as scratch:
        # Half of a character, as in a file name of another encoding, is written as JSON escapes it.
        write_new_file(scratch, text.encode("utf-8", errors="backslashreplace"))


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON object, complete or not at all. It is on the disk when the function returns."""
    write_text(file, json_text(content))


def json_text(content: dict[str, Any]) -> str:
    """Return an indented JSON object as text, with a line break at the end."""
    return json.dumps(json_values(content), ensure_ascii=False, indent=1) + "\n"


def json_values(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with the types of JSON: tuples become lists; infinity and NaN, which JSON lacks, become None."""
    values: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return values


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of Python or of a Rust library reports a full disk or an exhausted quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return says_disk_full(str(error))


def says_disk_full(text: str) -> bool:
    """Return whether an error message reports a full disk or an exhausted quota."""
    return "No space left on device" in text or "Disk quota exceeded" in text
