"""What every method is made of: settings, an adapter that sits on a model, and the facts that the registry lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from peftly.injection import remove_layer_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["Adapter", "Method", "MethodConfig", "OwnFormat", "Setup"]


class MethodConfig(BaseModel):
    """The settings of one method. Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    modules_to_save: tuple[str, ...] | None = None
    """Modules, by the end of their path, of which trained copies are kept with the adapter. None: the classifier."""

    @property
    def marked_tokens(self) -> int:
        """How many virtual tokens it has that stand where a template marks them."""
        return 0

    @property
    def corrects_quantization(self) -> bool:
        """Whether what it adds is in part what quantising has taken from the base, so that it fits no other."""
        return False


@dataclass(frozen=True)
class Setup:
    """What a method may use while it initialises its parameters.

    Attributes:
        tokenizer: needed where words are turned into rows; None where there is none.
        labels: the answers of a labelled task, as its rows end in them, in order.
        seed: of every random number drawn; the global generators are left alone.
        rows: such as will be trained on.
        original: opens the base as it was before it was quantised, on the CPU.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    labels: Sequence[str] = ()
    seed: int = 0
    rows: Sequence[EncodedExample] = ()
    original: Callable[[], PreTrainedModel] | None = None

    @cached_property
    def generator(self) -> torch.Generator:
        """What draws the random numbers, one after another."""
        return torch.Generator().manual_seed(self.seed)


class Adapter(ABC):
    """One adapter on one model. Making it puts it there; `remove` leaves the model as it was found.

    Parameters live inside the model, in a submodule named `peftly` of each layer that the adapter touches, so
    that `.to`, `.train`, optimizers and checkpoints of any framework find them.
    """

    config: Any
    peft_types: ClassVar[tuple[str, ...]]
    """What `adapter_config.json` may call the method; see `peft_type`. PEFT knows none that begins with PEFTLY_."""
    beyond_peft: ClassVar[str] = ""
    """Why PEFT cannot do what an adapter of such a type of our own does."""
    is_sum: ClassVar[bool] = False
    """Whether it adds products to what layers compute, of which each has a `scaling`, so that it can be weighted."""
    copies_prefix: ClassVar[str] = "base_model.model."
    """What stands before the names of `modules_to_save` in a file."""

    def __init__(self, model: PreTrainedModel, config: MethodConfig, name: str) -> None:
        self.model = model
        self.config = config
        self.name = name

    @property
    def peft_type(self) -> str:
        """What its own `adapter_config.json` calls it."""
        return self.peft_types[0]

    @classmethod
    @abstractmethod
    def attach(cls, model: PreTrainedModel, config: Any, name: str, setup: Setup) -> Self:
        """Put a freshly initialised adapter on `model`.

        Raises:
            MethodError: the model cannot carry it.
        """

    @classmethod
    def blank(cls, model: PreTrainedModel, config: Any, name: str) -> Self:
        """Put an adapter on `model` whose values are about to be read from a file."""
        return cls.attach(model, config, name, Setup())

    @classmethod
    def misfit(cls, model: nn.Module) -> str | None:
        """Return why `model` cannot carry the method, and the nearest that works; None if it can."""
        return None

    def initialize_from_data(self, setup: Setup) -> None:  # noqa: B027 -- there is nothing to do for most
        """Let a fresh adapter, which is on its model, start from what that model does; most start from less.

        Raises:
            MethodError: what it needs for that is not there.
        """

    def remove(self) -> None:
        """Take the adapter off its model."""
        remove_layer_adapters(self.model, self.name)

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what the method trains, by the names that files have for it; `modules_to_save` are not among it."""

    def own_tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps of the method: usually just what is trained."""
        return dict(self.parameters())

    def load_own_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """Take over what a file has kept.

        Args:
            tensors: by the names, and of the shapes, of `own_tensors`.
            peft: the `adapter_config.json` beside them.
        """
        for name, parameter in self.parameters().items():
            parameter.copy_(tensors[name])

    def training_tensors(self) -> dict[str, Tensor]:
        """Return what training goes on from, where `own_tensors` is only what that has come to; else nothing."""
        return {}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `training_tensors` from a file, so that training can go on.

        Raises:
            KeyError, RuntimeError: they are not of this adapter.
        """
        raise KeyError(*tensors)

    @abstractmethod
    def peft_config(self) -> dict[str, Any]:
        """Return what `adapter_config.json` says of this method, beyond the keys that all methods share."""

    @classmethod
    @abstractmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig | None:
        """Return the settings that an `adapter_config.json` of this `peft_type` stands for, but for `modules_to_save`.

        Returns:
            None if the file is of another method that shares the type.

        Raises:
            AdapterError: it asks for something that is not supported here.
        """

    def rate_factor(self, path: str) -> float:
        """Return by how much a parameter learns faster than the others, by its path in the model."""
        return 1.0


class OwnFormat(Adapter):
    """An adapter that PEFT has no type for: its file keeps our settings as they are."""

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        return {"settings": self.config.model_dump(mode="json")}

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig:
        """See `Adapter.config_from_peft`."""
        settings: MethodConfig = cls.settings.model_validate(peft["settings"])
        return settings

    settings: ClassVar[type[MethodConfig]]


@dataclass(frozen=True)
class Method:
    """A row of the registry: facts that tests, docs and the command line read.

    Attributes:
        adapter: the class that puts the method on a model.
        config: its settings.
        summary: what is trained, in a few words.
        paper: where the method comes from.
        learning_rate: the default for AdamW.
        mergeable: whether its effect can be folded into the base's weights.
        identity_at_init: whether a fresh adapter leaves the base's outputs unchanged.
        packs: whether it works on rows that a caller has packed, with positions that restart. Training packs by itself,
            through `peftly.kernels.packed_attention`, for every method.
    """

    adapter: type[Adapter]
    config: type[MethodConfig]
    summary: str
    paper: str
    learning_rate: float
    mergeable: bool
    identity_at_init: bool
    packs: bool = True
