"""Sequence classifiers whose head reads the mean of the token states, or the state of the first token.

Most classes of transformers put a pooler, or layers of their own, between the first token and the classifier. Their
subclasses here have one linear layer on the pooled states of the last layer instead, named `pooled_head`. They are
classes of transformers in everything else: `from_pretrained` and `save_pretrained` work, and `config.architectures`
names them.
"""

import functools
import inspect
from typing import Any, ClassVar, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from peftly.injection import body_of, output_heads

__all__ = ["POOLINGS", "Pooling", "pool", "pooled_class", "pooled_class_named", "pooling_of"]

Pooling = Literal["mean", "first"]
"""Pooled states of a text: the mean over its tokens, or those of its first token."""

POOLINGS: tuple[Pooling, ...] = ("mean", "first")
_PREFIXES: dict[Pooling, str] = {"mean": "MeanPooled", "first": "FirstPooled"}


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """Return the pooled states of each text, (batch, width).

    Args:
        states: states of the last layer, (batch, length, width).
        mask: attention mask, (batch, length); None: there is no padding.
        pooling: see `Pooling`.
    """
    counts = torch.ones(states.shape[:2], device=states.device) if mask is None else mask.to(states.device)
    if pooling == "first":
        return states[torch.arange(len(states), device=states.device), counts.argmax(1)]
    weights = counts.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1)


class _Pooled:
    """Replacements for the methods of a sequence classifier of transformers."""

    pooling: ClassVar[Pooling]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model: Any = self
        for path in output_heads(model):
            delattr(model, path)
        body = body_of(model)
        if getattr(body, "pooler", None) is not None:
            body.pooler = nn.Identity()  # some classes call it in any case
        dropout = getattr(config, "classifier_dropout", None)
        self.pooled_dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0) if dropout is None else dropout)
        self.pooled_head = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Return the logits of each text, and the loss where there are labels."""
        model: Any = self
        output = body_of(model)(input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        pooled = pool(output[0], attention_mask, self.pooling)
        logits = self.pooled_head(self.pooled_dropout(pooled.to(self.pooled_head.weight.dtype)))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels.view(-1))
        result = SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
        return result.to_tuple() if return_dict is False else result


@functools.cache
def pooled_class(model_class: type, pooling: Pooling) -> type:
    """Return the subclass of a sequence classifier of transformers with a linear head on the pooled states."""
    if issubclass(model_class, _Pooled):
        return model_class
    name = f"{_PREFIXES[pooling]}{model_class.__name__}"
    # The signature tells callers whether the model takes token types.
    forward = functools.wraps(_Pooled.forward)(lambda self, *args, **kwargs: _Pooled.forward(self, *args, **kwargs))
    forward.__signature__ = inspect.signature(model_class.forward)  # type: ignore[attr-defined]
    names = {"pooling": pooling, "forward": forward, "__module__": __name__, "__qualname__": name}
    return type(name, (_Pooled, model_class), names)


def pooled_class_named(name: str) -> type | None:
    """Return the pooled class of this name, such as `MeanPooledBertForSequenceClassification`; None: there is none."""
    for pooling, prefix in _PREFIXES.items():
        model_class = getattr(transformers, name.removeprefix(prefix), None) if name.startswith(prefix) else None
        if isinstance(model_class, type):
            return pooled_class(model_class, pooling)
    return None


def pooling_of(model: Any) -> Pooling | None:
    """Return the pooling in front of a model's head; None for the head of transformers' own class."""
    pooling: Pooling | None = model.pooling if isinstance(model, _Pooled) else None
    return pooling


def __getattr__(name: str) -> type:
    """Return a pooled class by its name, so that models can be unpickled."""
    model_class = pooled_class_named(name)
    if model_class is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return model_class
