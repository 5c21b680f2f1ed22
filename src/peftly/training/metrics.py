"""`metrics.jsonl`: the events of a run, one line of JSON each."""

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path

from peftly.training.callbacks import Callback, EvaluationRecord, StepRecord, from_dict, to_dict
from peftly.utils import append, is_disk_full, make_folder, sync, truncate

__all__ = ["MetricsWriter"]


class MetricsWriter(Callback):
    """Writes each event at once as a line of JSON; its `kind` is `step`, `evaluation`, `save` or `note`.

    On a full disk the lines are kept in memory, and written when there is space again.

    Attributes:
        path: the file.
        size: size of the file in bytes.
        problem: description of a failed write; None if all lines are in the file.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        """Create the file.

        Args:
            path: file to write; its folder is created.
            resume: keep an existing file, for `continue_from`.
        """
        self.path, self.size = path, 0
        self.problem: str | None = None
        self._hash = hashlib.sha256()
        self._unwritten = b""
        make_folder(path.parent)
        if not resume and path.is_file():
            truncate(path, 0)

    @property
    def sha256(self) -> str:
        """Hash of the file's content."""
        return self._hash.hexdigest()

    def continue_from(self, size: int, sha256: str) -> tuple[list[StepRecord | EvaluationRecord], str | None]:
        """Remove the lines of steps that will be repeated.

        Args:
            size, sha256: size and hash of the file when the checkpoint was written.

        Returns:
            The records in the file, and a note if it is damaged or incomplete.
        """
        content = self.path.read_bytes()[:size] if self.path.is_file() else b""
        is_same = len(content) == size and hashlib.sha256(content).hexdigest() == sha256
        content = content[: content.rfind(b"\n") + 1]
        if self.path.is_file():
            truncate(self.path, len(content))
        self.size, self._hash = len(content), hashlib.sha256(content)
        note = f"{self.path} was changed or is incomplete: the report of this run may lack steps; its weights are right"
        return _records(content), None if is_same else note

    def sync(self) -> None:
        """Wait until the file and its name are on the disk."""
        if self.path.is_file():
            sync(self.path)
            sync(self.path.parent)

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Write the record of a step or of an evaluation."""
        self._write(to_dict(record))

    def on_save(self, path: Path) -> None:
        """Write the name of the adapter's folder."""
        self._write({"kind": "save", "folder": path.name})

    def on_note(self, text: str) -> None:
        """Write the text."""
        self._write({"kind": "note", "text": text})

    def _write(self, entry: dict[str, object]) -> None:
        # JSON has no infinity, and a perplexity can overflow.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }
        self._unwritten += json.dumps(finite, allow_nan=False).encode("utf-8") + b"\n"
        try:
            append(self.path, self._unwritten)
        except OSError as error:
            with suppress(OSError):
                truncate(self.path, self.size)  # a line may be there in part
            if not is_disk_full(error):
                raise
            self.problem = f"{self.path}: {error.strerror}; its lines are written when there is space again"
            return
        self._hash.update(self._unwritten)
        self.size += len(self._unwritten)
        self._unwritten, self.problem = b"", None


def _records(content: bytes) -> list[StepRecord | EvaluationRecord]:
    """Return the records of steps and evaluations in lines of JSON; damaged lines are left out."""
    records = []
    for line in content.splitlines():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            if entry["kind"] == "evaluation":  # JSON has neither NaN nor infinity, and classes have no perplexity
                entry["loss"] = math.nan if entry["loss"] is None else entry["loss"]
            if entry["kind"] in ("step", "evaluation"):
                records.append(from_dict(entry))
    return records
