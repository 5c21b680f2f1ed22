"""What is to be exported, as every format is asked for it, and the saved adapter behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from peftly.adapters import (
    CARD,
    CONFIG,
    TENSORS,
    adapters_in,
    class_labels,
    find_adapter,
    method_config,
    read_peft_config,
    read_tensors,
    training_quantization,
)
from peftly.errors import AdapterError
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import TASKS, WHEEL_BASES, is_packed, task_of_peft

__all__ = ["Request", "SavedAdapter", "base_notes", "open_saved", "write_adapter"]


class Request(NamedTuple):
    """What a format is asked to write.

    Attributes:
        source: what is to be exported, as `peftly.load` takes it.
        folder: an empty folder to write to.
        out: where that folder will be afterwards.
        dtype: as the format takes it; None where it has none to choose.
    """

    source: str
    folder: Path
    out: Path
    dtype: str | None


class SavedAdapter(NamedTuple):
    """One adapter as its files have it; no base is opened for it.

    Attributes:
        folder: where it is.
        peft: its `adapter_config.json`.
        config: the settings of its method.
        tensors: by the names that they have in its file.
    """

    folder: Path
    peft: dict[str, Any]
    config: MethodConfig
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> type[Adapter]:
        """The class of its method."""
        return METHODS[self.config.name].adapter

    @property
    def own_type(self) -> str | None:
        """Why PEFT cannot do what it does; None if it can."""
        return self.kind.beyond_peft if self.peft["peft_type"].startswith("PEFTLY_") else None

    @property
    def base(self) -> str | None:
        """What transformers calls its base: for a base from a wheel the model on the Hub that it was made of."""
        base = self.peft.get("base_model_name_or_path") or None
        return WHEEL_BASES[base].model if base in WHEEL_BASES else base

    @property
    def base_name(self) -> str:
        """The same for people, who are to fill in a name where the adapter has none."""
        return self.base or "BASE"

    @property
    def auto_class(self) -> str:
        """The class of transformers that opens its base."""
        task = task_of_peft(self.peft.get("task_type"))
        return TASKS[task].auto_class if task else "AutoModel"

    @property
    def labels(self) -> list[str]:
        """What it tells apart, if it is for a classifier."""
        task = task_of_peft(self.peft.get("task_type"))
        return class_labels(self.folder) if task and TASKS[task].is_classification else []


def open_saved(source: str) -> SavedAdapter:
    """Read the files of one adapter.

    Raises:
        AdapterError: there is none, or several that were saved together; or it is damaged.
    """
    folder = find_adapter(source)
    together = adapters_in(folder)
    if len(together) > 1:
        raise AdapterError(f"{folder} holds several adapters: export one of {', '.join(map(str, together.values()))}")
    peft = read_peft_config(folder)
    return SavedAdapter(folder, peft, method_config(folder, peft), read_tensors(folder))


def base_notes(saved: SavedAdapter) -> list[str]:
    """Return what to know about the name that an exported adapter gives its base."""
    own = saved.peft.get("base_model_name_or_path")
    notes = [] if own else ["the adapter names no base: put its name in the place of BASE"]
    if own in WHEEL_BASES:
        packed = ", packed into fewer bits: its numbers are not quite the same" if is_packed(own) else ""
        notes.append(f"the base is called {saved.base}; {own} is a copy of it{packed}")
    if quantization := training_quantization(saved.folder):
        notes.append(
            f"it was trained over the base in {quantization.kind}: over another its answers are not quite the same"
        )
    return notes


def write_adapter(folder: Path, peft: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write the three files of an adapter in PEFT's format, and nothing else."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS, {"format": "pt"})
    text = json.dumps(dict(peft), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
