"""The model card of a merged model, and the licence of its base beside it."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from peftly.adapters import attached
from peftly.models import WHEEL_BASES, locate

if TYPE_CHECKING:
    from peftly.merging.parity import Parity

__all__ = ["CARD", "LICENCES", "copy_licences", "is_merged_model", "merged_card", "settings_of"]

CARD = "README.md"
TAG = "merged-adapter"
LICENCES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")


def is_merged_model(folder: Path) -> bool:
    """Whether a folder holds a merged model, as its card says."""
    return (folder / "config.json").is_file() and TAG in (_front(folder / CARD).get("tags") or [])


def copy_licences(spec: str, folder: Path) -> str:
    """Put the licence files of a base, by whatever name it is called, into a folder.

    Returns:
        A line about it.
    """
    source = _base_folder(spec)
    if source is None:
        return f"licence: there are no files of {spec} to copy; look up what it asks for"
    found = sorted(file for pattern in LICENCES for file in source.glob(pattern) if file.is_file())
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return (
        f"licence: {', '.join(file.name for file in found)} of the base" if found else "licence: the base has no file"
    )


def settings_of(model: Any, weights: Sequence[float] | None) -> list[str]:
    """Return for each adapter of a model how it was made, as a list in Markdown."""
    lines = []
    for place, (name, adapter) in enumerate(attached(model).items()):
        values = adapter.config.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        settings = ", ".join(f"{key}: {value}" for key, value in values.items() if value not in ([], {}, ""))
        weight = f", weight {weights[place]:g}" if weights is not None else ""
        lines.append(f"- {name}: {adapter.config.name}{weight}{f' ({settings})' if settings else ''}")
    return lines


def merged_card(spec: str, methods: Sequence[str], settings: Sequence[str], parity: "Parity") -> str:
    """Return the text of the card.

    Args:
        spec: what the base is called.
        methods: the names of the methods that were merged.
        settings: see `settings_of`.
        parity: how its answers compare with those of the adapted model.
    """
    wheel = WHEEL_BASES.get(spec)
    front: dict[str, Any] = {"base_model": wheel.model if wheel else spec, "library_name": "transformers"}
    if licence := _licence(spec):
        front["license"] = licence
    front["tags"] = ["peftly", TAG, *dict.fromkeys(methods)]
    table = "\n".join(f"| {name} | {value} |" for name, value in parity.rows())
    what = " and ".join(dict.fromkeys(methods))
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {front['base_model']} with {what} merged into it\n\n"
        "An ordinary transformers model: its `from_pretrained` opens it, nothing else is needed. The weights were\n"
        f"merged in fp32 and rounded once to {parity.dtype}.\n\n"
        f"Merged were:\n\n{chr(10).join(settings)}\n\n"
        "What this model says, beside what the base with its adapters said in fp32:\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _licence(spec: str) -> str | None:
    """Return the licence of a base as its card or what peftly knows of it says, in the words of the Hub."""
    if spec in WHEEL_BASES:
        return WHEEL_BASES[spec].license.lower()
    source = _base_folder(spec)
    found = _front(source / CARD).get("license") if source is not None else None
    return str(found) if found else None


def _base_folder(spec: str) -> Path | None:
    """Return a folder with the card and the licence files of a base, None if there is none."""
    source = locate(spec)
    if isinstance(source, Path):
        return source if source.is_dir() else None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CARD, *LICENCES]))
    except Exception:  # noqa: BLE001 - of whichever HTTP library the client is built on
        return None


def _front(card: Path) -> dict[str, Any]:
    """Return the front matter of a model card; empty if it has none that can be read."""
    try:
        match = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        front = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}
