"""`PeftModel`: the model itself, with PEFT's everyday methods on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.adapters import detach, use_adapters
from peftly.errors import MethodError, PeftlyError
from peftly.injection import adapted_layers, body_of, copied_modules, is_within
from peftly.peft.adapter_methods import AdapterMethods
from peftly.peft.attaching import check_new, finish_loading, load_new, wrap_new
from peftly.peft.config import PeftConfig
from peftly.peft.file_methods import FileMethods
from peftly.peft.names import TaskType
from peftly.peft.state_dict import adapter_source
from peftly.peft.translation import layers_of
from peftly.peft.wrapping import BaseModelView, Wrapping, model_class_of, reduced, wrapping_of

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
]


class PeftModel(AdapterMethods, FileMethods):
    """A model with adapters. `PeftModel(model, config)` returns the same model, whose class derives from both classes.

    The base is the model, so its parameters keep their names, and those of an adapter are in submodules `peftly`.

    Args:
        model: any module that the method supports.
        peft_config: configuration of the adapter.
        adapter_name: name of the adapter.
        autocast_adapter_dtype, low_cpu_mem_usage: without effect: parameters of adapters are in fp32.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Attach an adapter to a model and return the model; for the class of such a model, a new model without it."""
        model_class: Any = model_class_of(cls)
        return wrap_new(cls, *args, **kwargs) if model_class is None else model_class(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `__new__` returns a model that exists already."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to copy or pickle the model."""
        return reduced(self, super().__reduce_ex__(protocol))

    def __call__(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model.

        Args:
            args, kwargs: arguments of the model.
            adapter_names: adapter of each batch element; `__base__` stands for none.
        """
        if adapter_names is None:
            return super().__call__(*args, **kwargs)
        with _for_elements(self, adapter_names, args, kwargs):
            return super().__call__(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Generate with the model; the arguments are those of transformers, and those of `__call__`."""
        model: Any = super()
        generate = wrapping_of(self).hidden.get("generate") or model.generate
        if adapter_names is None:
            return generate(*args, **kwargs)
        with _for_elements(self, adapter_names, args, kwargs):
            return generate(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        model_id: str | Path | None = None,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Put an adapter from disk or from the Hub on a model, and return the model.

        Args:
            model: base of the adapter.
            model_id: folder of the adapter, or its id on the Hub.
            adapter_name: name of the adapter in the model.
            is_trainable: whether training changes the adapter; False: the model is also set to evaluation mode.
            config: configuration of the adapter, with the settings of its file.
            kwargs: as for `load_adapter`.

        Raises:
            AdapterError, MethodError: see `peftly.load_adapter`.
        """
        if (model_class := model_class_of(cls)) is not None and not isinstance(model, nn.Module):
            arguments = (model,) if model_id is None else (model, model_id)
            return model_class.from_pretrained(*arguments, **kwargs)
        if config is not None and not isinstance(config, PeftConfig):
            raise MethodError(f"The input config must be a PeftConfig, got {type(config)}")
        check_new(model)
        found = load_new(model, adapter_source(str(model_id), **kwargs), adapter_name, active=True)
        first = next(iter(found))
        if config is not None:
            try:
                _check_same(model, first, config, found[first])
            except PeftlyError:
                detach(model)
                raise
            found[first] = config
        peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(found[first].task_type, cls)
        Wrapping(model, peft_class if issubclass(peft_class, cls) else cls)
        finish_loading(model, found, is_trainable=is_trainable)
        return model

    @property
    def base_model(self) -> Any:
        """The body of the model, with PEFT's attribute `model`, the whole model; see `BaseModelView`."""
        if "base_model" in self._modules:  # a module of the user has a submodule of this name
            return BaseModelView(self, self._modules["base_model"])  # type: ignore[arg-type]
        if not isinstance(self, PreTrainedModel):
            return BaseModelView(self, self)
        body = body_of(self)
        return self if body is self else BaseModelView(self, body)

    @base_model.setter
    def base_model(self, value: Any) -> None:
        self._modules["base_model"] = value

    def prepare_model_for_gradient_checkpointing(self, model: Any = None) -> Any:
        """Let gradients reach the adapters through checkpointed layers; the model does so by itself here."""
        return self if model is None else model

    def get_base_model(self) -> Self:
        """Return the model: the base carries the adapters itself. Inside `disable_adapter` it computes without them."""
        return self


class PeftModelForCausalLM(PeftModel):
    """A decoder that generates text, with adapters."""


class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder that generates text, with adapters."""


class PeftModelForSequenceClassification(PeftModel):
    """A classifier of texts, with adapters."""


class PeftModelForTokenClassification(PeftModel):
    """A classifier of tokens, with adapters."""


class PeftModelForQuestionAnswering(PeftModel):
    """A model that finds answers in a text, with adapters."""


class PeftModelForFeatureExtraction(PeftModel):
    """A body without a head, with adapters."""


MODEL_TYPE_TO_PEFT_MODEL_MAPPING: dict[Any, type[PeftModel]] = {
    TaskType.SEQ_CLS: PeftModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.TOKEN_CLS: PeftModelForTokenClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}
"""Class of a model with adapters, by its task."""


def _check_same(model: nn.Module, name: str, config: PeftConfig, of_file: PeftConfig) -> None:
    """Refuse a configuration with another method, other settings or other layers than the file of a loaded adapter.

    Raises:
        MethodError: the configuration differs.
    """
    common = {field.name for field in fields(PeftConfig)} - {"peft_type"}
    given, expected = config.to_json(), of_file.to_json()
    expected["peft_type"] = str(of_file.peft_type).removeprefix("PEFTLY_")
    for key in given.keys() - common - _START - _CHOICE:
        if key in expected and given[key] not in (None, expected[key]):
            raise MethodError(
                f"config has {key}={given[key]!r}, and the file of the adapter {expected[key]!r}; leave config out, or "
                "change the file"
            )
    if given.get("target_modules") is None:
        return
    named, copies = layers_of(config, model), copied_modules(model, name)
    found = {path for path, *_ in adapted_layers(model, name) if not is_within(path, copies)}
    # An adapter may train biases of other layers as well.
    if named is not None and not (named <= found if given.get("bias") == "all" else named == found):
        path = min(named - found or found - named)
        has, lacks = ("config", "the file of the adapter") if path in named else ("the file of the adapter", "config")
        raise MethodError(
            f"config has target_modules={given['target_modules']!r}: {has} has the layer {path}, and {lacks} does not; "
            "leave config out, or name the layers of the file"
        )


_CHOICE = {"exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform", "target_modules"}
"""Settings that choose layers: other ones may choose the same."""

_START = {
    *("fan_in_fan_out", "init_ia3_weights", "init_lora_weights", "num_attention_heads", "num_layers"),
    *("num_transformer_submodules", "prompt_tuning_init", "prompt_tuning_init_text", "token_dim", "tokenizer_kwargs"),
    "tokenizer_name_or_path",
}
"""Settings that say how an adapter began, or what the base is; the tensors in its file say what it has."""


@contextmanager
def _for_elements(
    model: Any, names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]
) -> Iterator[None]:
    """Give each batch element an adapter; `__base__` stands for none.

    Raises:
        MethodError: the number of names is not that of the batch elements of a call with these arguments.
    """
    if isinstance(names, str):
        raise MethodError(f"adapter_names is {names!r}; give one name for each batch element, as [{names!r}, ...]")
    inputs = (kwargs.get(key) for key in ("input_ids", "inputs", "inputs_embeds"))
    batch = next((one for one in (*args, *inputs, *kwargs.values()) if isinstance(one, Tensor) and one.dim()), None)
    if batch is not None and len(batch) != len(names):
        raise MethodError(
            f"adapter_names has {len(names)} names, and the batch {len(batch)} elements; give one for each"
        )
    with use_adapters(model, adapters=[None if name == "__base__" else name for name in names]):
        yield
