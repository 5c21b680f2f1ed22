"""An adapter for Hugging Face PEFT: three files, without the notes that peftly writes for itself."""

import json

from peftly.errors import AdapterError
from peftly.exporting.request import Request
from peftly.exporting.saved_adapter import SavedAdapter, base_notes, open_saved, write_adapter, write_chat_template

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
    saved = open_saved(request.source)
    if saved.peft_limitation is not None:
        raise AdapterError(f"{saved.folder} cannot be exported for PEFT: {saved.peft_limitation}")
    peft_config = {**saved.peft_config, "base_model_name_or_path": saved.base, "inference_mode": True}
    write_adapter(request.folder, peft_config, saved.tensors, _card(saved))
    notes = [*base_notes(saved), *write_chat_template(request.folder, saved)]
    return [*notes, f"load it with PeftModel.from_pretrained(base, {str(request.out)!r})"]


def _card(saved: SavedAdapter) -> str:
    base = json.dumps(saved.base_name)
    labels = f", id2label={dict(enumerate(saved.labels))!r}" if saved.labels else ""
    return f"""---
base_model: {base}
library_name: peft
tags:
- peftly
- {saved.config.name}
---

# A {saved.config.name} adapter for {saved.base_name}

```python
import transformers
from peft import PeftModel

base = transformers.{saved.auto_class}.from_pretrained({base}{labels})
model = PeftModel.from_pretrained(base, ".")  # this folder
```
"""
