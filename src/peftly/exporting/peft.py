"""An adapter as Hugging Face PEFT has it: its three files, with names that transformers knows, and nothing of ours."""

import json

from peftly.errors import AdapterError
from peftly.exporting._request import Request, SavedAdapter, base_notes, open_saved, write_adapter

__all__ = ["write_peft"]


def write_peft(request: Request) -> list[str]:
    """Write an adapter that PEFT loads with the same logits.

    Raises:
        AdapterError: PEFT cannot do what it does.
    """
    saved = open_saved(request.source)
    if saved.own_type is not None:
        raise AdapterError(f"{saved.folder} cannot be exported for PEFT: {saved.own_type}")
    peft = {**saved.peft, "base_model_name_or_path": saved.base, "inference_mode": True}
    write_adapter(request.folder, peft, saved.tensors, _card(saved))
    return [*base_notes(saved), f"load it with PeftModel.from_pretrained(base, {str(request.out)!r})"]


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
