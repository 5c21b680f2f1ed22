"""Model card of a merged model, and the licence files of its base."""

import re
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from peftly.adapters import attached
from peftly.models import WHEEL_BASES, is_inside

if TYPE_CHECKING:
    from peftly.merging.parity import Parity
    from peftly.models import BaseSpec, Pooling

__all__ = ["CARD", "copy_licences", "merged_card", "settings_of"]

CARD = "README.md"
_TAG = "merged-adapter"
_LICENCES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
_MOST_BYTES = 1_000_000
"""A larger file is no licence."""


def copy_licences(base: "BaseSpec", folder: Path) -> str:
    """Copy the licence files of a base to a folder, without links to files that are not part of the base.

    Returns:
        A line on the licence for the user.
    """
    source = _base_folder(base)
    if source is None:
        return f"licence: the files of {base.name} cannot be read; check its licence"
    found = sorted(file for pattern in _LICENCES for file in source.glob(pattern) if file.is_file())
    refused = [file for file in found if not is_inside(file, source) or file.stat().st_size > _MOST_BYTES]
    licences = [file for file in found if file not in refused]
    for file in licences:
        shutil.copyfile(file, folder / file.name)
    line = f"licence: {_names(licences)} of the base" if licences else "licence: the base has no licence file"
    if refused:
        line += f"; not copied: {_names(refused)}, a link out of the folder of the base or above 1 MB"
    return line


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def settings_of(model: Any, weights: Sequence[float] | None) -> list[str]:
    """Return a line of a Markdown list with the settings of each adapter.

    Args:
        model: model with adapters.
        weights: weight of each adapter; None: no weights.
    """
    lines = []
    for index, (name, adapter) in enumerate(attached(model).items()):
        values = adapter.config.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        settings = ", ".join(f"{key}: {value}" for key, value in values.items() if value not in ([], {}, ""))
        weight = f", weight {weights[index]:g}" if weights is not None else ""
        lines.append(f"- {name}: {adapter.config.name}{weight}{f' ({settings})' if settings else ''}")
    return lines


def merged_card(
    base: "BaseSpec",
    methods: Sequence[str],
    settings: Sequence[str],
    parity: "Parity",
    *,
    pooling: "Pooling | None" = None,
) -> str:
    """Return the text of the model card.

    Args:
        base: the base.
        methods: names of the methods of the merged adapters.
        settings: settings of the adapters, see `settings_of`.
        parity: comparison with the adapted model.
        pooling: pooling in front of the head of a sequence classifier; None: the class of transformers has its own.
    """
    wheel = WHEEL_BASES.get(base.name)
    front: dict[str, Any] = {"base_model": wheel.model if wheel else base.name, "library_name": "transformers"}
    if licence := _licence(base):
        front["license"] = licence
    front["tags"] = ["peftly", _TAG, *dict.fromkeys(methods)]
    table = "\n".join(f"| {name} | {value} |" for name, value in parity.rows())
    merged = " and ".join(dict.fromkeys(methods))
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {front['base_model']} with {merged} merged into it\n\n"
        f"{_opening(pooling)} The weights were\nmerged in fp32 and rounded once to {parity.dtype}.\n\n"
        f"Merged adapters:\n\n{chr(10).join(settings)}\n\n"
        "Comparison with the base and its adapters in fp32:\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _opening(pooling: "Pooling | None") -> str:
    """Return sentences on how a merged model is opened."""
    if pooling is None:
        return "A plain transformers model, which `from_pretrained` opens without further libraries."
    states = "mean of the token states" if pooling == "mean" else "state of the first token"
    return (
        f"The head is one linear layer (`pooled_head`) on the {states} of the last layer. The classes of transformers\n"
        "do not have such a head and would draw a random one: open this folder with `peftly.load_base` or `--base`."
    )


def _licence(base: "BaseSpec") -> str | None:
    """Return the Hub's name of a base's licence, from the list of wheels or the base's card; None if unknown."""
    if base.name in WHEEL_BASES:
        return WHEEL_BASES[base.name].license.lower()
    source = _base_folder(base)
    licence = _front_matter(source / CARD).get("license") if source is not None else None
    return str(licence) if licence else None


@lru_cache(maxsize=1)
def _base_folder(base: "BaseSpec") -> Path | None:
    """Return a folder with the card and the licence files of a base; None if it cannot be read."""
    if isinstance(base.source, Path):
        return base.source if base.source.is_dir() else None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base.source, allow_patterns=[CARD, *_LICENCES]))
    except Exception:  # noqa: BLE001 - errors of the HTTP library of the Hub's client
        return None


def _front_matter(card: Path) -> dict[str, Any]:
    """Return the YAML front matter of a model card; empty if there is none or it cannot be read."""
    try:
        match = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        front = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}
