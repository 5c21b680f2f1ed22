"""An adapter for Hugging Face PEFT: three files, without the notes that peftly writes for itself.

A head that pools the token states is a fourth file; see `exporting.pooled_head`.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file

from peftly.adapters import with_parameter_targets
from peftly.errors import AdapterError
from peftly.exporting.pooled_head import HEAD_FILE, BareAdapter, bare_adapter, pooling_lines
from peftly.exporting.request import Request
from peftly.exporting.saved_adapter import SavedAdapter, base_notes, open_saved, write_adapter, write_own_tokenizer

__all__ = ["write_peft"]


def write_peft(request: Request) -> list[str]:
    """Write an adapter with which PEFT computes the same logits.

    Args:
        request: source and output folder.

    Returns:
        Notes for the user.

    Raises:
        AdapterError: PEFT cannot represent the adapter.
    """
    saved = open_saved(request.source, request.base)
    if saved.files.pooling is not None and (bare := bare_adapter(saved)) is not None:
        return _write_bare(request, saved, bare)
    if saved.peft_limitation is not None:
        raise AdapterError(f"{saved.folder} cannot be exported for PEFT: {saved.peft_limitation}")
    if saved.adapter_class.needs_task_in_peft and saved.files.labels and not saved.has_head:
        raise AdapterError(
            f"{saved.folder} cannot be exported for PEFT, which opens a prompt of a classifier with a copy of its head "
            "only: train it with modules_to_save: null"
        )
    peft_config = {**_own_targets(saved.peft_config), "base_model_name_or_path": saved.base, "inference_mode": True}
    write_adapter(request.folder, peft_config, saved.tensors, _card(saved))
    notes = [*base_notes(saved), *write_own_tokenizer(request.folder, saved)]
    return [*notes, f"load it with PeftModel.from_pretrained(base, {str(request.out)!r})"]


def _own_targets(peft_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration in which `target_modules` does not name the layers of `target_parameters`."""
    parameters = peft_config.get("target_parameters")
    if not parameters:
        return peft_config
    return with_parameter_targets(peft_config, [name.removesuffix(".weight") for name in parameters])


def _write_bare(request: Request, saved: SavedAdapter, bare: BareAdapter) -> list[str]:
    """Write a classifier with a pooled head as an adapter of the bare base, and the head."""
    peft_config = {**_own_targets(bare.peft_config), "base_model_name_or_path": saved.base, "inference_mode": True}
    base = json.dumps(saved.base_name)
    code = f"""import transformers
from peft import PeftModel
from safetensors.torch import load_file

base = transformers.AutoModel.from_pretrained({base})
model = PeftModel.from_pretrained(base, ".").eval()  # this folder
{pooling_lines(saved)}"""
    write_adapter(request.folder, peft_config, bare.tensors, _page(saved, code))
    save_file({name: tensor.contiguous() for name, tensor in bare.head.items()}, request.folder / HEAD_FILE)
    return [
        *base_notes(saved),
        f"transformers has no class with this head (pooling {saved.files.pooling}): the adapter is for AutoModel, and "
        f"the README computes the scores of the labels with {HEAD_FILE}",
    ]


def _card(saved: SavedAdapter) -> str:
    base = json.dumps(saved.base_name)
    labels = f", id2label={dict(enumerate(saved.labels))!r}" if saved.labels else ""
    code = f"""import transformers
from peft import PeftModel

base = transformers.{saved.auto_class}.from_pretrained({base}{labels})
model = PeftModel.from_pretrained(base, ".")  # this folder"""
    return _page(saved, code)


def _page(saved: SavedAdapter, code: str) -> str:
    """Return a model card with the code that opens the adapter."""
    base = json.dumps(saved.base_name)
    return f"""---
base_model: {base}
library_name: peft
tags:
- peftly
- {saved.config.name}
---

# A {saved.config.name} adapter for {saved.base_name}

```python
{code}
```
"""
