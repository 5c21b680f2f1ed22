"""An adapter as its files hold it: the input of the exports that open no base."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from peftly.adapters import (
    CARD,
    CONFIG,
    PEFT_LIMIT,
    ROW_FORMAT,
    TENSORS,
    TOKENIZER_FILES,
    AdapterFolder,
    AdapterSource,
    chat_template_in,
    open_adapters,
    own_tokenizer,
    tokenizer_size,
)
from peftly.errors import AdapterError, BaseModelError
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import TASKS, WHEEL_BASES, base_config, is_quantized_in_wheel, resolve_base

__all__ = [
    "CHAT_TEMPLATE",
    "SavedAdapter",
    "base_notes",
    "open_saved",
    "vocabulary_obstacle",
    "write_adapter",
    "write_own_tokenizer",
]

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
        if self.adapter_class.needs_task_in_peft and self.peft_config.get("task_type") is None:
            return "PEFT has no task for the class of its base, and leaves prompts out there"
        if self.peft_config["peft_type"].startswith("PEFTLY_"):
            return self.adapter_class.peft_limitation
        limit: str | None = self.files.notes.get(PEFT_LIMIT)
        return limit

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
        """Chat template that the training set, or that is in the folder of the adapter; None: the base's own."""
        template = (self.files.notes.get(ROW_FORMAT) or {}).get("chat_template")
        return template if isinstance(template, str) else chat_template_in(self.folder)

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the adapter has another tokenizer or chat template than its base."""
        return self.chat_template is not None or any((self.folder / name).is_file() for name in TOKENIZER_FILES)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the adapter, with its chat template; None where neither it nor its base can be opened here."""
        try:
            base = resolve_base(self.files.base_name or "").tokenizer
        except BaseModelError:
            return None
        tokenizer = own_tokenizer(self.folder, base) or base
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

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


def write_own_tokenizer(folder: Path, saved: SavedAdapter) -> list[str]:
    """Write the tokenizer of an adapter, if it is not that of its base: with other tokens or another chat template.

    Args:
        folder: output folder.
        saved: the adapter.

    Returns:
        Notes for the user.

    Raises:
        AdapterError: the tokenizer in the folder of the adapter cannot be opened.
    """
    if not saved.has_own_tokenizer:
        return []
    names = [name for name in TOKENIZER_FILES if (saved.folder / name).is_file()]
    for name in names:
        shutil.copyfile(saved.folder / name, folder / name)
    if saved.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(saved.chat_template, encoding="utf-8")
    tokenizer = saved.tokenizer
    if tokenizer is None and not names:
        return [f"{CHAT_TEMPLATE} is the chat template of the training: set it as the chat_template of the tokenizer"]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    template = " with the chat template of the training, which is not the base's own" if saved.chat_template else ""
    return [f"the folder holds the tokenizer{template or ' of the adapter'}"]


def vocabulary_obstacle(saved: SavedAdapter) -> str | None:
    """Return why a server of the base cannot read the tokens of an adapter; None: the base has all of them."""
    size = _vocabulary_of_base(saved)
    if size is None:
        return None
    rows = [tensor.shape[0] for name, tensor in saved.tensors.items() if name.endswith(".base_layer.weight")]
    tokens = saved.tokenizer and tokenizer_size(saved.tokenizer)
    larger = next((number for number in (*rows, tokens or 0) if number > size), None)
    if larger is None:
        return None
    return f"it has a vocabulary of {larger} tokens, and a server of its base has {size} embeddings"


def _vocabulary_of_base(saved: SavedAdapter) -> int | None:
    try:
        config = base_config(saved.files.base_name or "")
    except BaseModelError:
        return None
    size = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    return size if isinstance(size, int) else None
