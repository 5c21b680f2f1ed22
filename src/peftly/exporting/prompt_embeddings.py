"""A soft prompt as a plain tensor, for servers that read the embeddings of a prompt instead of its tokens.

vLLM (`--enable-prompt-embeds`) reads the embeddings of the whole prompt: the soft prompt, then the text. The exported
README.md shows how to concatenate the two.
"""

import json
import shlex
from typing import Any

import torch
from safetensors.torch import save_file

from peftly.adapters import ROW_FORMAT
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting.request import Request
from peftly.exporting.saved_adapter import (
    SavedAdapter,
    base_notes,
    open_saved,
    vocabulary_obstacle,
    write_own_tokenizer,
)
from peftly.methods import METHODS, PromptAdapter
from peftly.models import base_config

__all__ = ["embeddings_obstacle", "write_prompt_embeddings"]

_NAME = "prompt_embeddings"


def write_prompt_embeddings(request: Request) -> list[str]:
    """Write the embeddings of a soft prompt, (num_virtual_tokens, hidden_size), in the base's dtype.

    Args:
        request: source and output folder.

    Returns:
        Notes for the user.

    Raises:
        AdapterError: the adapter is not a soft prompt in front of a decoder's text.
    """
    saved = open_saved(request.source, request.base)
    reason = embeddings_obstacle(saved)
    if reason is not None:
        raise AdapterError(f"{saved.folder} cannot be exported as prompt embeddings: {reason}")
    notes = [*base_notes(saved), *write_own_tokenizer(request.folder, saved)]
    dtype = _base_dtype(saved)
    if dtype is None:
        notes.append("the base cannot be opened here, so its dtype is unknown: written in float32")
    prompt = saved.tensors[_NAME].to(dtype or torch.float32).contiguous()
    save_file({_NAME: prompt}, request.folder / f"{_NAME}.safetensors", {"format": "pt"})
    torch.save(prompt.clone(), request.folder / f"{_NAME}.pt")
    (request.folder / "README.md").write_text(_readme(saved, prompt), encoding="utf-8")
    shape = " x ".join(map(str, prompt.shape))
    return [*notes, f"{shape} numbers, {str(prompt.dtype).removeprefix('torch.')}; README.md shows how to use them"]


def embeddings_obstacle(saved: SavedAdapter) -> str | None:
    """Return the reason why embeddings in front of a text cannot replace an adapter; None if they can."""
    name, peft_config = saved.config.name, saved.peft_config
    if not issubclass(saved.adapter_class, PromptAdapter):
        return f"{name} trains {METHODS[name].summary}, which embeddings in front of a text cannot replace"
    if saved.peft_limitation is not None:
        return saved.peft_limitation
    if peft_config.get("task_type") not in (None, "CAUSAL_LM") or peft_config.get("num_transformer_submodules", 1) != 1:
        return f"it is for {peft_config['task_type']}, and these servers run decoders only"
    if peft_config.get("modules_to_save"):
        modules = ", ".join(peft_config["modules_to_save"])
        return f"it holds trained copies of modules (modules_to_save: {modules}), which a server of the base lacks"
    if any(name != _NAME for name in saved.tensors):
        return "it holds the embeddings of new tokens, which a server of the base lacks"
    return vocabulary_obstacle(saved)


def _base_dtype(saved: SavedAdapter) -> torch.dtype | None:
    """Return the dtype of the base's files; None where the base cannot be opened."""
    spec = saved.files.base_name
    try:
        config: Any = base_config(spec) if spec else None
    except BaseModelError:
        return None
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _training_text(saved: SavedAdapter) -> str:
    """Return a sentence on how prompts were made in training."""
    row_format = saved.files.notes.get(ROW_FORMAT) or {}
    if row_format.get("template"):
        return f"In training every text was made with this template:\n\n    {json.dumps(row_format['template'])}"
    if row_format.get("chat_template"):
        return (
            f"In training every text was made with this chat template:\n\n    {json.dumps(row_format['chat_template'])}"
        )
    if row_format.get("kind") == "chat":
        return "The text must be formatted as in training, with the tokenizer's chat template."
    return "The text must be formatted as in training, template included."


def _readme(saved: SavedAdapter, prompt: torch.Tensor) -> str:
    base, (count, width) = json.dumps(saved.base_name), prompt.shape
    tokenizer = '"."' if saved.has_own_tokenizer else "base"
    return f"""# A soft prompt for {saved.base_name}

`{_NAME}.safetensors` and `{_NAME}.pt` hold the same tensor: {count} embeddings of {width} numbers. The model reads
them in front of the embeddings of a text, like its first tokens. {_training_text(saved)}

With transformers:

```python
import torch
import transformers

base = {base}
tokenizer = transformers.AutoTokenizer.from_pretrained({tokenizer})
model = transformers.AutoModelForCausalLM.from_pretrained(base)
soft_prompt = torch.load("{_NAME}.pt", weights_only=True)


def prompt_embeddings(text):
    ids = tokenizer(text, return_tensors="pt").input_ids
    text_embeddings = model.get_input_embeddings()(ids)[0].detach()
    return torch.cat([soft_prompt.to(text_embeddings.dtype), text_embeddings])


prompt = prompt_embeddings("Where is my parcel?")
settings = {{"attention_mask": torch.ones(1, len(prompt)), "max_new_tokens": 20, "do_sample": False}}
output = model.generate(inputs_embeds=prompt[None], **settings)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

With vLLM, started by

    vllm serve {shlex.quote(saved.base_name)} --enable-prompt-embeds

a request holds the tensor of the whole prompt, saved by torch and encoded in base64. The client needs the embedding
table and the tokenizer of the base, as above, but not its other weights.

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
