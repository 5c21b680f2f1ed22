"""The output folder of an export: checks before writing, and a mark by which a later export recognises it."""

import re
from pathlib import Path

from peftly.adapters import CARD, CONFIG, TENSORS
from peftly.errors import ConfigError
from peftly.exporting.gguf import DTYPES
from peftly.utils import check_output_folder

__all__ = ["check_out", "mark"]

_WRITTEN = (CONFIG, TENSORS, CARD, "prompt_embeddings.safetensors", "prompt_embeddings.pt")
"""Files that exports write, besides `.gguf` files with the name of the folder."""

_MARK = "<!-- written by peftly export -->"
"""Line in the card of an export. A later export may replace a folder that has it."""


def check_out(out: Path, adapter: str, *, overwrite: bool) -> None:
    """Check that an export may be written to a folder. Nothing is changed.

    Args:
        out: absolute path of the output folder.
        adapter: adapter or base to export.
        overwrite: whether the files of an earlier export may be replaced.

    Raises:
        ConfigError: `out` is a file, holds the adapter to export, or holds files that may not be replaced.
    """
    source = Path(adapter).expanduser().resolve()
    if source.exists() and (source.is_relative_to(out) or out == source / "adapter"):
        raise ConfigError(f"out: {out} is or holds the adapter to export; choose another folder")
    model_file = re.compile(rf"{re.escape(out.name)}-({'|'.join(DTYPES)})\.gguf")
    check_output_folder(
        out,
        kind="an export",
        is_ours=_has_mark,
        may_hold=lambda entry: entry.name in _WRITTEN or model_file.fullmatch(entry.name) is not None,
        overwrite=overwrite,
    )


def _has_mark(folder: Path) -> bool:
    """Whether the card of a folder has the mark of an export. A folder without a card needs none."""
    card = folder / CARD
    return not card.is_file() or _MARK in card.read_text(encoding="utf-8", errors="replace")


def mark(folder: Path) -> None:
    """Add the mark of an export to the card in its folder, if there is a card."""
    if (card := folder / CARD).is_file():
        card.write_text(f"{card.read_text(encoding='utf-8')}\n{_MARK}\n", encoding="utf-8")
