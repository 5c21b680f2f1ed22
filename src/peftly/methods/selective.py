"""Selective tuning trains copies of some modules of the base, and full fine-tuning trains copies of all modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from peftly.errors import MethodError
from peftly.injection import (
    add_copies,
    base_modules,
    first_matches,
    is_callable,
    is_within,
    matches_path,
    norm_layers,
    output_heads,
)
from peftly.methods.method import MethodConfig, OwnFormat, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Full", "FullAdapter", "Selective", "SelectiveAdapter"]


class Selective(MethodConfig):
    """Settings of selective tuning. The modules that any of them selects are trained."""

    name: Literal["selective"] = "selective"
    head: bool = False
    """Train the output head: the classifier, or the language model head."""
    last_layers: int = Field(default=2, ge=0, le=1_000_000)
    """Number of last blocks to train (in an encoder-decoder model, of the encoder and of the decoder)."""
    layer_norms: bool = False
    """Train all normalisation layers."""
    modules: str | tuple[str, ...] = ()
    """More modules to train: ends of paths, or a regular expression for whole paths."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.head or self.last_layers or self.layer_norms or self.modules):
            raise ValueError("nothing is selected; set head, last_layers, layer_norms or modules")
        return self


class Full(MethodConfig):
    """Settings of full fine-tuning, which has none of its own."""

    name: Literal["full"] = "full"


class _CopiesAdapter(OwnFormat):
    """Trained copies of modules. The modules of `modules_to_save`, by default the classifier, are copied too."""

    peft_limitation: ClassVar[str] = "PEFT saves copies of modules only together with another method"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return nothing: the copies are saved like those of `modules_to_save`. See `Adapter.parameters`."""
        return {}


class SelectiveAdapter(_CopiesAdapter):
    """Trained copies of the modules that the settings select."""

    config: Selective
    settings: ClassVar[type[MethodConfig]] = Selective
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_SELECTIVE",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Selective, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        add_copies(model, name, _with_parameters(model, [*_selected_paths(model, config)]))
        return cls(model, config, name)


class FullAdapter(_CopiesAdapter):
    """Trained copies of all parameters. The base stays as it is, so the copies need the memory of a second model."""

    config: Full
    settings: ClassVar[type[MethodConfig]] = Full
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_FULL",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Full, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        add_copies(model, name, _with_parameters(model, [""]))
        return cls(model, config, name)


def _selected_paths(model: nn.Module, config: Selective) -> Iterator[str]:
    """Yield the paths of the modules that the settings select."""
    if config.head:
        heads = output_heads(model)
        if not heads:
            raise MethodError(f"head: this {type(model).__name__} has no output head; name its modules instead")
        yield from heads
    for stack in _stacks(model) if config.last_layers else ():
        yield from (path for path, _ in stack[-config.last_layers :])
    if config.layer_norms:
        yield from norm_layers(model)
    paths = [path for path, _ in base_modules(model)]
    if isinstance(config.modules, str):
        matched = [*first_matches([config.modules], paths, "modules")] if config.modules else []
    else:
        matched = [path for path in paths if any(matches_path(module, path) for module in config.modules)]
    if config.modules and not matched:
        raise MethodError(f"modules={config.modules!r} matches no module of this {type(model).__name__}")
    yield from matched


def _stacks(model: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Return the blocks of each stack of a model, with their paths."""
    lists = {path: module for path, module in base_modules(model) if isinstance(module, nn.ModuleList)}
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise MethodError(f"last_layers: this {type(model).__name__} has no list of blocks; name its modules instead")
    return [[(f"{path}.{index}", block) for index, block in enumerate(lists[path])] for path in outer]


def _with_parameters(model: nn.Module, selected: list[str]) -> list[nn.Module]:
    """Return the smallest modules that own all parameters inside the selected modules; "" selects the whole model.

    A module that is never called, as a list of parameters, is copied with the module around it.
    """
    modules = dict(base_modules(model))
    owners: dict[str, nn.Module] = {}
    for path, module in modules.items():
        is_selected = "" in selected or is_within(path, selected)
        if is_selected and any(True for _ in module.parameters(recurse=False)):
            while path and not _is_called(modules[path]):
                path = path.rpartition(".")[0]
            owners[path] = modules[path]
    return [module for path, module in owners.items() if not any(around in owners for around in _parents(path))]


def _is_called(module: nn.Module) -> bool:
    kind: Any = type(module)
    return is_callable(kind)


def _parents(path: str) -> Iterator[str]:
    """Yield the paths of the modules around a module."""
    while path:
        path = path.rpartition(".")[0]
        yield path
