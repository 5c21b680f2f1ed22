"""Selective tuning: some modules of the base are trained as they are, as copies; full fine-tuning trains them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from peftly.errors import MethodError
from peftly.injection import add_copies, base_modules, is_below, is_norm, names, output_heads
from peftly.methods.method import MethodConfig, OwnFormat, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Full", "FullAdapter", "Selective", "SelectiveAdapter"]


class Selective(MethodConfig):
    """Settings of selective tuning. What several of them name is trained together."""

    name: Literal["selective"] = "selective"
    head: bool = False
    """Train the output head: the classifier, or what gives words their probability."""
    last_layers: int = Field(default=2, ge=0)
    """Train that many of the last blocks (of an encoder's and a decoder's each)."""
    layer_norms: bool = False
    """Train every layer normalisation."""
    modules: str | tuple[str, ...] = ()
    """Names of modules, or a regular expression for whole paths."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.head or self.last_layers or self.layer_norms or self.modules):
            raise ValueError("nothing is selected; set head, last_layers, layer_norms or modules")
        return self


class Full(MethodConfig):
    """Settings of full fine-tuning, of which there are none."""

    name: Literal["full"] = "full"


class _CopiesAdapter(OwnFormat):
    """Trained copies of modules. `modules_to_save` adds to them, and a classifier is among them by itself."""

    beyond_peft: ClassVar[str] = "PEFT keeps copies of modules beside another method only"

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`: the copies are kept as `modules_to_save` are."""
        return {}


class SelectiveAdapter(_CopiesAdapter):
    """Trained copies of the modules that the settings name."""

    config: Selective
    settings: ClassVar[type[MethodConfig]] = Selective
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_SELECTIVE",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Selective, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        chosen = [*_chosen(model, config)]
        add_copies(model, name, _with_parameters(model, chosen))
        return cls(model, config, name)


class FullAdapter(_CopiesAdapter):
    """Trained copies of everything: the base stays, so this takes the memory of a second model."""

    config: Full
    settings: ClassVar[type[MethodConfig]] = Full
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_FULL",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Full, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        add_copies(model, name, _with_parameters(model, [""]))
        return cls(model, config, name)


def _chosen(model: nn.Module, config: Selective) -> Iterator[str]:
    """Yield the paths of the modules that the settings name."""
    if config.head:
        heads = output_heads(model)
        if not heads:
            raise MethodError(f"head: this {type(model).__name__} has no output head; name its modules instead")
        yield from heads
    for stack in _stacks(model) if config.last_layers else ():
        yield from (path for path, _ in stack[-config.last_layers :])
    if config.layer_norms:
        yield from (path for path, module in base_modules(model) if is_norm(module))
    if isinstance(config.modules, str):
        found = [path for path, _ in base_modules(model) if re.fullmatch(config.modules, path)]
    else:
        found = [path for path, _ in base_modules(model) if any(names(one, path) for one in config.modules)]
    if config.modules and not found:
        raise MethodError(f"modules={config.modules!r} matches no module of this {type(model).__name__}")
    yield from found


def _stacks(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Return the lists of blocks that a model is made of: one for each stack."""
    lists = {path: module for path, module in base_modules(model) if isinstance(module, nn.ModuleList)}
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise MethodError(f"last_layers: this {type(model).__name__} has no list of blocks; name its modules instead")
    return [[(f"{path}.{place}", block) for place, block in enumerate(lists[path])] for path in outer]


def _with_parameters(model: nn.Module, chosen: list[str]) -> list[nn.Module]:
    """Return the smallest modules that own all parameters at or below the chosen paths."""
    owners: dict[str, nn.Module] = {}
    for path, module in base_modules(model):
        is_chosen = any(not one or is_below(path, [one]) for one in chosen)
        is_within = any(path.startswith(f"{other}.") for other in owners)
        if is_chosen and not is_within and any(True for _ in module.parameters(recurse=False)):
            owners[path] = module
    return list(owners.values())
