"""Interface of a method: its settings, and its adapter on a model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from peftly.injection import remove_layer_adapters
from peftly.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["Adapter", "MethodConfig", "OwnFormat", "Setup", "Size"]

Size = Annotated[int, Field(ge=1, le=1_000_000)]
"""Rank, number of virtual tokens or hidden dimension: a dimension of the tensors of an adapter."""


class MethodConfig(Settings):
    """Settings of one method. Immutable; an unknown setting is an error."""

    section: ClassVar[str] = "method"

    name: str
    """Name of the method."""
    modules_to_save: tuple[str, ...] | None = None
    """Modules that are trained as full copies and saved with the adapter, by the ends of their paths. None: the
    classifier."""

    @classmethod
    def from_json(cls, settings: Any) -> Self:
        """Return the settings in a JSON value. Values of another type are not converted: "8" is no number.

        Raises:
            ValueError: a setting is unknown, or its value has the wrong type or is impossible.
        """
        return cls.model_validate_json(json.dumps(settings), strict=True)

    @property
    def num_marked_tokens(self) -> int:
        """Number of virtual tokens whose positions a template marks."""
        return 0

    @property
    def default_rate_factor(self) -> float:
        """Factor of the method's default learning rate for these settings."""
        return 1.0

    @property
    def corrects_quantization(self) -> bool:
        """Whether the adapter corrects the quantisation error of its base, so that it fits no other base."""
        return False


@dataclass(frozen=True)
class Setup:
    """Inputs from which a method initialises its parameters.

    Attributes:
        tokenizer: tokenizer of the model, for parameters that start from text; None: there is no tokenizer.
        answers: answers of a labelled task, as the training examples end in them, in the order of the labels.
        seed: seed of the initial values; the global random generators are not used.
        examples: training examples, for parameters that start from the inputs of layers.
        original: function that opens the base without quantisation, on the CPU.
        is_loading: whether the values of a file are about to replace the initial values, so that none has to be
            computed, and names of layers that the model does not have are passed over, as PEFT does.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    answers: Sequence[str] = ()
    seed: int = 0
    examples: Sequence[EncodedExample] = ()
    original: Callable[[], PreTrainedModel] | None = None
    is_loading: bool = False

    @cached_property
    def generator(self) -> torch.Generator:
        """Random generator on the CPU, which all parameters of one adapter share."""
        return torch.Generator().manual_seed(self.seed)


class Adapter(ABC):
    """One adapter on one model. The constructor attaches the adapter, and `remove` restores the model.

    The parameters are stored inside the model, in a submodule named `peftly` of each layer that the adapter changes, so
    that `.to`, `.train`, optimizers and checkpoints of any framework include them.

    Attributes:
        model: model that the adapter is attached to.
        config: settings of the method.
        name: name of the adapter in the model.
        has_probed_head: whether the head that the adapter trains started from a linear probe.
    """

    config: Any
    has_probed_head: bool = False
    peft_types: ClassVar[tuple[str, ...]]
    """Values of `peft_type` in `adapter_config.json` that this class can load. PEFT does not know the ones that begin
    with PEFTLY_."""
    peft_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of `adapter_config.json` that this class reads or that change no output, besides those of all methods."""
    peft_limitation: ClassVar[str] = ""
    """Reason why PEFT cannot represent an adapter whose type begins with PEFTLY_."""
    needs_task_in_peft: ClassVar[bool] = False
    """Whether PEFT opens the adapter only by the task of its file."""
    can_be_weighted: ClassVar[bool] = False
    """Whether the adapter only adds products to outputs of layers, each with a `scaling`, which a weight multiplies."""
    copies_prefix: ClassVar[str] = "base_model.model."
    """Prefix of the names of `modules_to_save` in a file."""

    def __init__(self, model: PreTrainedModel, config: MethodConfig, name: str) -> None:
        self.model = model
        self.config = config
        self.name = name

    @property
    def peft_type(self) -> str:
        """Value of `peft_type` in the `adapter_config.json` that is written for this adapter."""
        return self.peft_types[0]

    @classmethod
    @abstractmethod
    def attach(cls, model: PreTrainedModel, config: Any, name: str, setup: Setup) -> Self:
        """Attach a newly initialised adapter to `model`.

        Args:
            model: model without an adapter of this name, for which `unsupported_reason` is None.
            config: settings of the method.
            name: name of the adapter in the model.
            setup: inputs from which the parameters are initialised.

        Raises:
            MethodError: the settings do not fit the model, or the setup lacks an input.
        """

    @classmethod
    def attach_for_loading(cls, model: PreTrainedModel, config: Any, name: str) -> Self:
        """Attach an adapter to `model` with placeholder values, which `load_file_tensors` is about to replace.

        The new tensors may have at most twice as many elements as the file: settings of a file may be absurd, and more
        elements are refused.
        """
        return cls.attach(model, config, name, Setup(is_loading=True))

    @classmethod
    def unsupported_reason(cls, model: nn.Module) -> str | None:
        """Return why the method does not support `model`, and the nearest method that does; None if it is supported."""
        return None

    def initialize_from_data(self, setup: Setup) -> None:  # noqa: B027 -- most methods need no forward pass
        """Initialise parameters from forward passes of the model, for methods that need them, after `attach`.

        Raises:
            MethodError: the setup lacks an input that the initialisation needs.
        """

    def remove(self) -> None:
        """Detach the adapter from its model."""
        remove_layer_adapters(self.model, self.name)

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by their names in a file, without those of `modules_to_save`."""

    def file_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of an adapter file by name; for most methods these are the trained parameters."""
        return dict(self.parameters())

    def load_file_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """Set the parameters from the tensors of an adapter file.

        Args:
            tensors: tensors with the names and shapes of `file_tensors`.
            peft: content of the `adapter_config.json` in the folder of the file.
        """
        for name, parameter in self.parameters().items():
            parameter.copy_(tensors[name])

    def training_tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters of a reparameterised prompt or prefix, by name; empty for other adapters.

        An adapter file holds only the prompt that they produce, so a checkpoint stores them too.
        """
        return {}

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters from `training_tensors` of a checkpoint, so that training can continue.

        Raises:
            KeyError, RuntimeError: the names or shapes of the tensors do not fit this adapter.
        """
        raise KeyError(*tensors)

    @abstractmethod
    def peft_config(self) -> dict[str, Any]:
        """Return the entries of `adapter_config.json` that this method adds to those of all methods."""

    @classmethod
    def peft_settings(cls, config: Any) -> dict[str, Any]:
        """Return those of the entries in `peft_config` that depend on the settings and not on the model.

        An adapter whose files disagree about one of these entries is refused.
        """
        return {}

    @classmethod
    @abstractmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig | None:
        """Return the settings that an `adapter_config.json` describes, without `modules_to_save`.

        Args:
            peft: content of the file; its `peft_type` is one of `peft_types`.

        Returns:
            None if the file is of another method that has the same `peft_type`.

        Raises:
            AdapterError: the file uses a setting of PEFT that is not supported.
        """

    @classmethod
    def config_on(
        cls, model: nn.Module, config: Any, peft: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> MethodConfig:
        """Return the settings for one model of an adapter that PEFT wrote.

        Args:
            model: model that the adapter is about to be attached to.
            config: result of `config_from_peft`, with `modules_to_save`.
            peft: content of `adapter_config.json`.
            shapes: shapes of the tensors, by their plain names.

        Raises:
            AdapterError, MethodError: an entry of the file is unsound.
        """
        found: MethodConfig = config
        return found

    @classmethod
    def shape_error(cls, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Return why no adapter with these settings has a file with tensors of these shapes; None: one may have it.

        Args:
            config: settings of the method.
            shapes: shapes of the tensors, by their names in the file.

        Raises:
            MethodError: a regular expression in the settings is invalid, or takes too long.
        """
        return None

    def learning_rate_factor(self, path: str) -> float:
        """Return the factor of the learning rate for one parameter, given its path in the model."""
        return 1.0


class OwnFormat(Adapter):
    """Adapter for which PEFT has no type: its `adapter_config.json` holds our settings."""

    settings: ClassVar[type[MethodConfig]]
    """Class of the settings."""

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        return {"settings": self.config.model_dump(mode="json")}

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig:
        """See `Adapter.config_from_peft`."""
        return cls.settings.from_json(peft["settings"])
