"""An adapter as its files hold it: the input of the exports that open no base."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from peftly.adapters import CARD, CONFIG, ROW_FORMAT, TENSORS, AdapterFolder, AdapterSource, open_adapters
from peftly.errors import AdapterError, BaseModelError
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import TASKS, WHEEL_BASES, is_quantized_in_wheel, resolve_base

__all__ = ["CHAT_TEMPLATE", "SavedAdapter", "base_notes", "open_saved", "write_adapter", "write_chat_template"]

CHAT_TEMPLATE = "chat_template.jinja"
"""File that transformers and vLLM read a chat template from."""


class SavedAdapter(NamedTuple):
    """Files of one adapter. Its base is not opened.

    Attributes:
        files: content of its JSON files.
        tensors: tensors by their names in the file.
    """

    files: AdapterFolder
    tensors: dict[str, Tensor]

    @property
    def folder(self) -> Path:
        """Folder of the adapter."""
        return self.files.path

    @property
    def peft_config(self) -> Mapping[str, Any]:
        """Content of `adapter_config.json`."""
        return self.files.peft_config

    @property
    def config(self) -> MethodConfig:
        """Settings of the method."""
        return self.files.method

    @property
    def adapter_class(self) -> type[Adapter]:
        """Adapter class of the method."""
        return METHODS[self.config.name].adapter

    @property
    def peft_limitation(self) -> str | None:
        """Reason why PEFT cannot load the adapter; None if PEFT can."""
        if self.files.pooling is not None:
            return (
                f"its head reads pooled token states (pooling {self.files.pooling}), which the class of transformers "
                "does not; train it with head: transformers"
            )
        return self.adapter_class.peft_limitation if self.peft_config["peft_type"].startswith("PEFTLY_") else None

    @property
    def base(self) -> str | None:
        """Name of the base for transformers; for a base from a wheel the Hub id of its source."""
        base = self.files.base_name
        return WHEEL_BASES[base].model if base in WHEEL_BASES else base

    @property
    def base_name(self) -> str:
        """Name of the base for people; BASE, for them to fill in, where the adapter names no base."""
        return self.base or "BASE"

    @property
    def auto_class(self) -> str:
        """Class of transformers that opens the base."""
        return TASKS[self.files.task].auto_class if self.files.task else "AutoModel"

    @property
    def chat_template(self) -> str | None:
        """Chat template that the training set; None: the base's own."""
        template = (self.files.notes.get(ROW_FORMAT) or {}).get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def has_head(self) -> bool:
        """Whether the adapter holds copies of modules, as of the head of a classifier."""
        return bool(self.peft_config.get("modules_to_save"))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a classifier; empty for other tasks."""
        return self.files.labels


def open_saved(source: AdapterSource, base: str | None = None) -> SavedAdapter:
    """Read the files of one adapter.

    Args:
        source: adapter, as `peftly.load` takes it.
        base: its base, where it is not the one that it names; None: that one.

    Raises:
        AdapterError: there is no adapter, the adapter is damaged, or several adapters were saved together.
    """
    opened = open_adapters(source, base)
    first, *others = opened.folders.values()
    if others:
        paths = ", ".join(str(folder.path) for folder in (first, *others))
        raise AdapterError(f"{opened.path} holds several adapters: export one of {paths}")
    return SavedAdapter(first, first.tensors())


def base_notes(saved: SavedAdapter) -> list[str]:
    """Return notes for the user on the base that an exported adapter names."""
    base = saved.files.base_name
    notes = [] if base else ["the adapter names no base: replace BASE by its name"]
    if base in WHEEL_BASES:
        packed = ", packed into fewer bits: its weights differ slightly" if is_quantized_in_wheel(base) else ""
        notes.append(f"the base is called {saved.base}; {base} is a copy of it{packed}")
    if quantization := saved.files.quantization:
        notes.append(f"it was trained over the base in {quantization.kind}: over another its answers differ slightly")
    return notes


def write_adapter(folder: Path, peft: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write the three files of an adapter in PEFT's format."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS, {"format": "pt"})
    text = json.dumps(dict(peft), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def write_chat_template(folder: Path, saved: SavedAdapter) -> list[str]:
    """Write the tokenizer of the base with the chat template of the training, if the training set one.

    Args:
        folder: output folder.
        saved: the adapter.

    Returns:
        Notes for the user.
    """
    if saved.chat_template is None:
        return []
    (folder / CHAT_TEMPLATE).write_text(saved.chat_template, encoding="utf-8")
    try:
        tokenizer = resolve_base(saved.files.base_name or "").tokenizer
    except BaseModelError:
        return [f"{CHAT_TEMPLATE} is the chat template of the training: set it as the chat_template of the tokenizer"]
    tokenizer.chat_template = saved.chat_template
    tokenizer.save_pretrained(folder)
    return ["the folder holds the tokenizer with the chat template of the training, which is not the base's own"]
