"""A classifier whose head pools the token states, for Hugging Face PEFT: an adapter of the bare base, and the head.

PEFT adapts classes of transformers, and none of them has such a head. So the adapter becomes one of the base without a
head, and the card shows the three lines that compute the scores of the labels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from peftly.exporting.saved_adapter import SavedAdapter

__all__ = ["HEAD_FILE", "BareAdapter", "bare_adapter", "pooling_lines"]

HEAD_FILE = "head.safetensors"
"""File with `weight` and `bias` of the head."""

_PREFIX = "base_model.model."
_HEAD = f"{_PREFIX}pooled_head."
_PEFT_TYPES = ("LORA", "IA3")


class BareAdapter(NamedTuple):
    """Adapter of the base without a head, and the head.

    Attributes:
        peft_config: content of `adapter_config.json`.
        tensors: tensors of the adapter by their names in PEFT's file.
        head: weight and bias of the head.
    """

    peft_config: dict[str, Any]
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]


def bare_adapter(saved: SavedAdapter) -> BareAdapter | None:
    """Return the two parts of a classifier with a pooled head; None where PEFT cannot represent the adapter."""
    peft_config = saved.peft_config
    targets = [peft_config.get(key) for key in ("target_modules", "feedforward_modules")]
    has_other_modules = peft_config.get("modules_to_save") != ["pooled_head"]
    if peft_config["peft_type"] not in _PEFT_TYPES or has_other_modules or any(isinstance(t, str) for t in targets):
        return None
    head = {name.removeprefix(_HEAD): tensor for name, tensor in saved.tensors.items() if name.startswith(_HEAD)}
    layers = {name: tensor for name, tensor in saved.tensors.items() if not name.startswith(_HEAD)}
    (body,) = {name.removeprefix(_PREFIX).partition(".")[0] for name in layers}  # the base in the classifier
    tensors = {f"{_PREFIX}{name.removeprefix(f'{_PREFIX}{body}.')}": tensor for name, tensor in layers.items()}
    config = {key: _without_prefix(value, f"{body}.") for key, value in peft_config.items()}
    return BareAdapter({**config, "task_type": "FEATURE_EXTRACTION", "modules_to_save": None}, tensors, head)


def _without_prefix(value: Any, prefix: str) -> Any:
    """Return names of modules, in lists or as keys, relative to the base."""
    if isinstance(value, Mapping):
        return {str(key).removeprefix(prefix): inner for key, inner in value.items()}
    return [str(name).removeprefix(prefix) for name in value] if isinstance(value, list) else value


def pooling_lines(saved: SavedAdapter) -> str:
    """Return the code that computes the scores of the labels from the states of the adapted base."""
    if saved.files.pooling == "mean":
        pooled = 'mask = inputs["attention_mask"][..., None]\npooled = (states * mask).sum(1) / mask.sum(1)'
    else:
        pooled = "pooled = states[:, 0]  # with padding on the right"
    return f"""tokenizer = transformers.AutoTokenizer.from_pretrained(base.name_or_path)
inputs = tokenizer(["a text"], return_tensors="pt", padding=True)
states = model(**inputs).last_hidden_state
{pooled}
head = load_file("{HEAD_FILE}")
scores = pooled @ head["weight"].T + head["bias"]  # of {", ".join(saved.labels)}"""
