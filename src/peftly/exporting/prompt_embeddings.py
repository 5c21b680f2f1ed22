"""A soft prompt as a plain tensor, for servers that take the embeddings of a prompt in place of its words.

vLLM (`--enable-prompt-embeds`) wants the whole prompt: the rows, and behind them the embeddings of the text. The tensor
is a part of that, so what is written says how the two are joined.
"""

import json
import shlex
from typing import Any

import torch
from safetensors.torch import save_file

from peftly.adapters import read_notes
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting._request import Request, SavedAdapter, base_notes, open_saved
from peftly.methods import METHODS, PromptAdapter
from peftly.models import base_config

__all__ = ["why_no_embeddings", "write_prompt_embeddings"]

_NAME = "prompt_embeddings"


def write_prompt_embeddings(request: Request) -> list[str]:
    """Write the rows of a soft prompt, (num_virtual_tokens, width), in the base's dtype.

    Raises:
        AdapterError: it is no soft prompt in front of a decoder's text.
    """
    saved = open_saved(request.source)
    reason = why_no_embeddings(saved)
    if reason is not None:
        raise AdapterError(f"{saved.folder} cannot be exported as prompt embeddings: {reason}")
    notes = base_notes(saved)
    dtype = _base_dtype(saved)
    if dtype is None:
        notes.append("the base is not here, so its dtype is not known: written in float32")
    rows = saved.tensors[_NAME].to(dtype or torch.float32).contiguous()
    save_file({_NAME: rows}, request.folder / f"{_NAME}.safetensors", {"format": "pt"})
    torch.save(rows.clone(), request.folder / f"{_NAME}.pt")
    (request.folder / "README.md").write_text(_readme(saved, rows), encoding="utf-8")
    shape = " x ".join(map(str, rows.shape))
    return [*notes, f"{shape} numbers, {str(rows.dtype).removeprefix('torch.')}; README.md shows how to use them"]


def why_no_embeddings(saved: SavedAdapter) -> str | None:
    """Return why no embeddings in front of a text can stand for an adapter; None if they can."""
    name = saved.config.name
    if not issubclass(saved.kind, PromptAdapter):
        return f"{name} trains {METHODS[name].summary}, for which no embeddings in front of a text can stand"
    if saved.own_type is not None:
        return saved.own_type
    if saved.peft.get("task_type") not in (None, "CAUSAL_LM") or saved.peft.get("num_transformer_submodules", 1) != 1:
        return f"it is for {saved.peft['task_type']}, and such servers write with decoders only"
    if saved.peft.get("modules_to_save"):
        kept = ", ".join(saved.peft["modules_to_save"])
        return f"it keeps trained copies of modules (modules_to_save: {kept}), which a server of the base does not have"
    return None


def _base_dtype(saved: SavedAdapter) -> torch.dtype | None:
    """Return the dtype of the base's files; None where they are not here."""
    spec = saved.peft.get("base_model_name_or_path")
    try:
        config: Any = base_config(spec) if spec else None
    except BaseModelError:
        return None
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _training_text(saved: SavedAdapter) -> str:
    """Return what a text was in training, as a sentence."""
    row_format = read_notes(saved.folder).get("row_format") or {}
    if row_format.get("template"):
        return f"In training a text was made by this template:\n\n    {json.dumps(row_format['template'])}"
    how = ": made by the tokenizer's chat template." if row_format.get("kind") == "chat" else ", its template included."
    return f"The text is what it was in training{how}"


def _readme(saved: SavedAdapter, rows: torch.Tensor) -> str:
    base, (count, width) = json.dumps(saved.base_name), rows.shape
    return f"""# A soft prompt for {saved.base_name}

`{_NAME}.safetensors` and `{_NAME}.pt` hold the same {count} rows of {width} numbers. A model reads them in front of
the embeddings of a text, as if they were its first words. {_training_text(saved)}

With transformers:

```python
import torch
import transformers

base = {base}
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
model = transformers.AutoModelForCausalLM.from_pretrained(base)
rows = torch.load("{_NAME}.pt", weights_only=True)


def prompt_embeddings(text):
    ids = tokenizer(text, return_tensors="pt").input_ids
    words = model.get_input_embeddings()(ids)[0].detach()
    return torch.cat([rows.to(words.dtype), words])


prompt = prompt_embeddings("Where is my parcel?")
settings = {{"attention_mask": torch.ones(1, len(prompt)), "max_new_tokens": 20, "do_sample": False}}
written = model.generate(inputs_embeds=prompt[None], **settings)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

With vLLM, started by

    vllm serve {shlex.quote(saved.base_name)} --enable-prompt-embeds

a request has the tensor of the whole prompt, saved by torch, in base64. The client needs the embedding table and the
tokenizer of the base, as above, and not the rest of it.

```python
import base64
import io
import json
import urllib.request

server = "http://localhost:8000/v1/completions"
buffer = io.BytesIO()
torch.save(prompt, buffer)
encoded = base64.b64encode(buffer.getvalue()).decode()
body = {{"model": base, "prompt_embeds": encoded, "max_tokens": 20, "temperature": 0}}
call = urllib.request.Request(server, json.dumps(body).encode(), {{"Content-Type": "application/json"}})
with urllib.request.urlopen(call) as answer:
    print(json.load(answer)["choices"][0]["text"])
```
"""
