"""`PeftModel`: the model itself, with PEFT's everyday methods on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.adapters import (
    PushAdapters,
    SaveAdapters,
    active_adapters,
    attach,
    attached,
    detach,
    load_adapter,
    save_adapter,
    set_adapters,
    use_adapters,
)
from peftly.errors import AdapterError, MethodError
from peftly.injection import body_of
from peftly.merging.combine import combine
from peftly.peft.config import PeftConfig
from peftly.peft.merging import merged
from peftly.peft.names import TaskType
from peftly.peft.prompts import prompt_of
from peftly.peft.state_dict import (
    IncompatibleKeys,
    adapter_source,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peftly.peft.trainable import number_of_parameters, require_grad, train_only
from peftly.peft.translation import config_of, method_of, tokenizer_for
from peftly.peft.wrapping import BaseModelView, Wrapping, model_class_of, reduced, wrapping_of
from peftly.utils import warn

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "attach_new",
    "wrap_new",
]


class PeftModel(nn.Module):
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
        with _for_elements(self, adapter_names):
            return super().__call__(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Generate with the model; the arguments are those of transformers, and those of `__call__`."""
        model: Any = super()
        generate = wrapping_of(self).hidden.get("generate") or model.generate
        if adapter_names is None:
            return generate(*args, **kwargs)
        with _for_elements(self, adapter_names):
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
            config: configuration of the adapter, of which only `inference_mode` may differ from the file.
            kwargs: as for `load_adapter`.

        Raises:
            AdapterError, MethodError: see `peftly.load_adapter`.
        """
        if (model_class := model_class_of(cls)) is not None and not isinstance(model, nn.Module):
            arguments = (model,) if model_id is None else (model, model_id)
            return model_class.from_pretrained(*arguments, **kwargs)
        if config is not None and not isinstance(config, PeftConfig):
            raise MethodError(f"The input config must be a PeftConfig, got {type(config)}")
        _check_new(model)
        source = adapter_source(str(model_id), **kwargs)
        load_adapter(model, source, name=adapter_name)
        found = {name: config_of(adapter) for name, adapter in attached(model).items()}
        peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(next(iter(found.values())).task_type, cls)
        wrapping = Wrapping(model, peft_class if issubclass(peft_class, cls) else cls)
        for name, one in found.items():
            wrapping.configs[name] = one if config is None else config
        _finish_loading(model, list(found), is_trainable)
        return model

    # The adapters.

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Configurations of the adapters, by their names."""
        return wrapping_of(self).configs

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        disabled = wrapping_of(self).disabled
        return active_adapters(self) if disabled is None else list(disabled)

    @property
    def active_adapter(self) -> Any:
        """Name of the active adapter; a list if not exactly one is active."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def active_peft_config(self) -> PeftConfig:
        """Configuration of the active adapter."""
        return self.peft_config[(self.active_adapters or list(self.peft_config))[0]]

    @property
    def peft_type(self) -> Any:
        """Method of the active adapter, as PEFT names it."""
        return self.active_peft_config.peft_type

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of modules of which adapters train copies; None: there are none."""
        configs: list[Any] = list(self.peft_config.values())
        return {name for one in configs for name in getattr(one, "modules_to_save", None) or ()} or None

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

    def get_base_model(self) -> Self:
        """Return the model: the base carries the adapters itself. Inside `disable_adapter` it computes without them."""
        return self

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Activate an adapter, or several, and no others; only these are trained.

        Args:
            adapter_name: name of the adapter, or names.
            inference_mode: whether these are not trained either.

        Raises:
            MethodError: there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        model: Any = self
        set_adapters(model, *names)
        wrapping_of(self).disabled = None
        train_only(self, () if inference_mode else names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Set whether training changes the parameters of adapters."""
        require_grad(self, [adapter_names] if isinstance(adapter_names, str) else list(adapter_names), requires_grad)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a new adapter, of any method, which is neither active nor trained before `set_adapter`.

        Args:
            adapter_name: name of the adapter.
            peft_config: its configuration.
            low_cpu_mem_usage, autocast_adapter_dtype: without effect.

        Raises:
            MethodError: the model has an adapter of this name already, or cannot carry this one.
        """
        with _same_active(self):
            attach_new(self, peft_config, adapter_name)
        require_grad(self, [adapter_name], False)
        self.peft_config[adapter_name] = peft_config

    def load_adapter(
        self, model_id: str | Path, adapter_name: str = "default", is_trainable: bool = False, **kwargs: Any
    ) -> IncompatibleKeys:
        """Add an adapter from disk or from the Hub, which is not active before `set_adapter`.

        Args:
            model_id: folder of the adapter, or its id on the Hub.
            adapter_name: name of the adapter. The tensors of one that the model has are replaced.
            is_trainable: whether training changes it; False: the model is also set to evaluation mode.
            kwargs: `subfolder`, `revision`, `token` and `cache_dir`; others have no effect.

        Raises:
            AdapterError, MethodError: see `peftly.load_adapter`.
        """
        hub = {key: value for key, value in kwargs.items() if key in ("subfolder", "revision", "token", "cache_dir")}
        if adapter_name in self.peft_config:
            result = set_peft_model_state_dict(self, load_peft_weights(model_id, **hub), adapter_name)
        else:
            before = list(attached(self))
            load_adapter(self, adapter_source(model_id, **hub), name=adapter_name, on=False)
            for name, adapter in attached(self).items():
                if name not in before:
                    self.peft_config[name] = config_of(adapter)
            result = IncompatibleKeys([], [])
        _finish_loading(self, [name for name in (adapter_name,) if name in attached(self)], is_trainable)
        return result

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. If it was the only active one, the first of the others is active then.

        Raises:
            MethodError: there is no such adapter.
        """
        was_active = self.active_adapters == [adapter_name]
        detach(self, adapter_name)
        if isinstance(self, PeftModel):  # the last adapter takes the class of PEFT with it
            del self.peft_config[adapter_name]
            if was_active:
                first = next(iter(self.peft_config))
                warn(f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {first}.")
                self.set_adapter(first)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        **others: Any,
    ) -> None:
        """Add the weighted sum of LoRA adapters as a new one, which is not active before `set_adapter`.

        Args:
            adapters: names of the adapters.
            weights: weight of each.
            adapter_name: name of the new adapter.
            combination_type: "cat" and "linear" are the exact sum, whose rank is the sum of the ranks (PEFT's "linear"
                adds the factors instead of the updates); "svd" its best approximation of rank `svd_rank`.
            svd_rank: rank for "svd"; None: the largest rank of the adapters.
            others: not supported, besides their defaults.

        Raises:
            MethodError: a setting is not supported, or the adapters cannot be added.
        """
        if combination_type not in ("cat", "linear", "svd"):
            raise MethodError(f'combination_type={combination_type!r} is not in peftly; use "svd", "cat" or "linear"')
        if unknown := [key for key, value in others.items() if value not in (None, True, "gesvd", "total")]:
            raise MethodError(f"add_weighted_adapter has no {unknown[0]}; leave it out")
        if len(adapters) != len(weights):
            raise MethodError(f"there are {len(weights)} weights for {len(adapters)} adapters; give one for each")
        if adapter_name in self.peft_config:
            return
        model: Any = self
        by_name = dict(zip(adapters, weights, strict=True))
        with _same_active(self):
            if combination_type == "svd":
                combine(model, by_name, name=adapter_name, method="svd", rank=svd_rank)
            else:
                combine(model, by_name, name=adapter_name)
        require_grad(self, [adapter_name], False)
        self.peft_config[adapter_name] = config_of(attached(self)[adapter_name])

    # Without the adapters.

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model compute as its base, modules of which copies are trained included, inside the block."""
        model: Any = self
        with use_adapters(model):
            yield

    def disable_adapter_layers(self) -> None:
        """Let the model compute as its base until `enable_adapter_layers`."""
        model: Any = self
        wrapping = wrapping_of(model)
        if wrapping.disabled is None:
            wrapping.disabled = active_adapters(model)
            set_adapters(model)

    def enable_adapter_layers(self) -> None:
        """Undo `disable_adapter_layers`."""
        model: Any = self
        wrapping = wrapping_of(model)
        if wrapping.disabled is not None:
            set_adapters(model, *wrapping.disabled)
            wrapping.disabled = None

    def disable_adapters(self) -> None:
        """See `disable_adapter_layers`."""
        self.disable_adapter_layers()

    def enable_adapters(self) -> None:
        """See `enable_adapter_layers`."""
        self.enable_adapter_layers()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> Any:
        """Merge the active adapters into the weights, remove all adapters, and return the model in its own class.

        Args:
            progressbar: without effect.
            safe_merge: without effect: a merge that changes the outputs of a layer is always refused.
            adapter_names: names of the adapters to merge; None: the active ones.

        Raises:
            MethodError: see `peftly.merge`.
        """
        return merged(self, self.active_adapters if adapter_names is None else adapter_names)

    def merge_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse to merge adapters that stay on the model.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "merge_adapter is not in peftly, whose adapters stay beside the weights; call "
            "copy.deepcopy(model).merge_and_unload() for a merged model"
        )

    def unmerge_adapter(self) -> None:
        """See `merge_adapter`."""
        self.merge_adapter()

    def unload(self) -> Any:
        """Remove all adapters and return the model, in its own class."""
        return detach(self)

    # Numbers, files and prompts.

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the number of trainable parameters, and of all."""
        return number_of_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print the number of trainable parameters, of all, and their ratio."""
        trainable, total = number_of_parameters(self)
        print(  # noqa: T201 -- the purpose of the method
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the adapters: `default` to the folder, and each other one to a folder of its name in it.

        Args:
            save_directory: folder to write.
            safe_serialization: only True is possible.
            selected_adapters: names of the adapters; None: all.
            save_embedding_layers: whether the files also hold the embedding and the output head of the base; "auto": if
                the vocabulary was resized.
            is_main_process: False: this process writes nothing.
            path_initial_model_for_weight_conversion: without effect: the base of an adapter never changes, so a
                file always fits the original base.
            kwargs: `state_dict` and the settings of `push_to_hub`.

        Raises:
            AdapterError, MethodError: see `peftly.save_adapter`.
        """
        if Path(save_directory).is_file():
            raise AdapterError(f"Provided path ({save_directory}) should be a directory, not a file")
        save = _Save(selected_adapters, save_embedding_layers)
        writer = SaveAdapters(self, save)
        writer(save_directory, is_main_process, safe_serialization=safe_serialization, **kwargs)

    def push_to_hub(self, repo_id: str, safe_serialization: bool = True, **kwargs: Any) -> Any:
        """Upload the adapters; the arguments are those of transformers.

        Raises:
            AdapterError: a setting is unknown.
        """
        if not safe_serialization:
            raise AdapterError("push_to_hub writes safetensors only; leave safe_serialization out")
        return PushAdapters(self, _Save(None, "auto"))(repo_id, **kwargs)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """Return the prompt of an adapter as its file holds it."""
        return prompt_of(self, adapter_name).detach().cpu()

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None) -> Tensor:
        """Return the virtual tokens of the active adapter for a batch, (batch_size, num_virtual_tokens, width)."""
        return prompt_of(self, self.active_adapter).repeat(batch_size, 1, 1)


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


def wrap_new(
    peft_class: type[PeftModel],
    model: Any,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    low_cpu_mem_usage: bool = False,
) -> Any:
    """Attach a new adapter to a model without one, make the model one of PEFT, and return it."""
    _check_new(model)
    attach_new(model, peft_config, adapter_name)
    Wrapping(model, peft_class).configs[adapter_name] = peft_config
    if peft_config.inference_mode:
        require_grad(model, [adapter_name], False)
    return model


def attach_new(model: Any, config: PeftConfig, name: str) -> None:
    """Attach a new adapter. Its initial values follow torch's global random generator, as those of PEFT do.

    The layers and dimensions that the configuration left open are set in it.
    """
    _check_config(config)
    method, tokenizer = method_of(config, model), tokenizer_for(config)
    attach(model, method, name=name, tokenizer=tokenizer, seed=int(torch.randint(2**32, ())))
    config.base_model_name_or_path = getattr(model, "name_or_path", None) or config.base_model_name_or_path
    for key, value in attached(model)[name].peft_config().items():
        if getattr(config, key, value) is None:
            setattr(config, key, set(value) if key == "target_modules" else value)


def _check_config(config: object) -> None:
    """Do nothing for a configuration.

    Raises:
        MethodError: the argument is something else, such as a configuration of PEFT itself.
    """
    if not isinstance(config, PeftConfig):
        kind = type(config)
        advice = "import it from peftly.peft" if kind.__module__.startswith("peft.") else "give one, as LoraConfig()"
        raise MethodError(f"{kind.__module__}.{kind.__name__} is no configuration of peftly.peft; {advice}")


class _Save:
    """Function that writes adapters in the layout of PEFT."""

    def __init__(self, names: Sequence[str] | None, embeddings: str | bool) -> None:
        self.names, self.embeddings = names, None if embeddings == "auto" else bool(embeddings)

    def __call__(self, model: nn.Module, folder: Path) -> None:
        for name in attached(model) if self.names is None else self.names:
            target = folder if name == "default" else folder / name
            save_adapter(model, target, name=name, embeddings=self.embeddings)


def _check_new(model: nn.Module) -> None:
    """Refuse a model that has adapters already.

    Raises:
        MethodError: the model has adapters.
    """
    if isinstance(model, PeftModel):
        raise MethodError(
            f"this model has the adapter {', '.join(map(repr, attached(model)))} already; call model.unload() first to "
            "start anew, or model.add_adapter(name, config) or model.load_adapter(folder, name) for another one"
        )
    if isinstance(model, nn.Module) and attached(model):
        raise MethodError("peftly.attach has put an adapter on this model; call peftly.detach(model) first")


def _finish_loading(model: nn.Module, names: Sequence[str], is_trainable: bool) -> None:
    """Freeze loaded adapters, or let them be trained."""
    require_grad(model, names, is_trainable)
    configs: dict[str, PeftConfig] = wrapping_of(model).configs
    for name in names:
        configs[name] = copy(configs[name])
        configs[name].inference_mode = not is_trainable
    if not is_trainable:
        model.eval()


@contextmanager
def _same_active(model: Any) -> Iterator[None]:
    """Restore the choice of the active adapters after the block."""
    names = active_adapters(model)
    try:
        yield
    finally:
        set_adapters(model, *(name for name in names if name in attached(model)))


@contextmanager
def _for_elements(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Give each batch element an adapter; `__base__` stands for none."""
    with use_adapters(model, adapters=[None if name == "__base__" else name for name in names]):
        yield
