"""The folder of an export: what it may replace, and how one is known."""

import re
from pathlib import Path

from peftly.adapters import CARD, CONFIG, TENSORS
from peftly.errors import ConfigError
from peftly.exporting.gguf import DTYPES
from peftly.utils import check_place

__all__ = ["check_out", "mark"]

_WRITTEN = (CONFIG, TENSORS, CARD, "prompt_embeddings.safetensors", "prompt_embeddings.pt")
"""What exports write, beside `.gguf` files with the name of the folder."""

MARK = "<!-- written by peftly export -->"
"""In the card of an export, which says that it may be replaced by another."""


def check_out(out: Path, adapter: str, *, overwrite: bool) -> None:
    """Refuse a folder that an export cannot have; nothing is changed.

    Raises:
        ConfigError: it is a file, what is to be exported, or holds something that may not be replaced.
    """
    check_place(out)
    source = Path(adapter).expanduser().resolve()
    if source.exists() and (source.is_relative_to(out) or out == source / "adapter"):
        raise ConfigError(f"out: {out} is or holds what is to be exported; name another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    own_model = re.compile(rf"{re.escape(out.name)}-({'|'.join(DTYPES)})\.gguf")
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if name not in _WRITTEN and not own_model.fullmatch(name)]
    if foreign:
        raise ConfigError(f"out: {out} holds {foreign[0]}, which is not from an export; choose a new or empty folder")
    if CARD in names and MARK not in (out / CARD).read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"out: {out} holds an adapter that is not from an export; choose a new or empty folder")
    if not overwrite:
        raise ConfigError(f"out: {out} is not empty; choose another folder, or replace its files with --overwrite")


def mark(folder: Path) -> None:
    """Write into the card of an export, if it has one, that it is one."""
    if (card := folder / CARD).is_file():
        card.write_text(f"{card.read_text(encoding='utf-8')}\n{MARK}\n", encoding="utf-8")
