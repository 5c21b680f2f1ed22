"""The folder of an export: what it may replace, and how it appears as a whole."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftly.adapter_files import CARD, CONFIG, TENSORS
from peftly.errors import ConfigError
from peftly.exporting.gguf import DTYPES

__all__ = ["check_out", "written_whole"]

_WRITTEN = (CONFIG, TENSORS, CARD, "prompt_embeddings.safetensors", "prompt_embeddings.pt")
"""What exports write, beside `.gguf` files with the name of the folder."""

MARK = "<!-- written by peftly export -->"
"""In the card of an export, which says that it may be replaced by another."""


def check_out(out: Path, adapter: str, *, overwrite: bool) -> None:
    """Refuse a folder that an export cannot have; nothing is changed.

    Raises:
        ConfigError: it is a file, what is to be exported, or holds something that may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder")
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


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `out` if the block ends well, and is dropped if not.

    Raises:
        ConfigError: there can be no folder beside `out`.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written: {error.strerror}") from error
    try:
        folder, before = aside / "new", aside / "before"
        folder.mkdir()
        yield folder
        if (card := folder / CARD).is_file():
            card.write_text(f"{card.read_text(encoding='utf-8')}\n{MARK}\n", encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o666 & folder.stat().st_mode)  # safetensors gives its file to the owner alone
        if out.exists():
            out.rename(before)
        try:
            folder.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
