"""BitFit: only the biases are trained (Ben Zaken et al. 2022, arXiv:2106.10199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from torch import nn

from peftly.injection import BiasCopy, adapted_layers, add_layer_adapter, bias_layers, is_below, own_parts
from peftly.methods.method import MethodConfig, OwnFormat, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BitFit", "BitFitAdapter"]


class BitFit(MethodConfig):
    """Settings of BitFit."""

    name: Literal["bitfit"] = "bitfit"


class BitFitAdapter(OwnFormat):
    """Trained copies of all biases of linear layers and normalisations."""

    config: BitFit
    settings: ClassVar[type[MethodConfig]] = BitFit
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_BITFIT",)
    beyond_peft: ClassVar[str] = "PEFT trains biases beside LoRA only"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: BitFit, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        for path, layer in bias_layers(model).items():
            if not is_below(path, own_parts(model)):
                add_layer_adapter(model, layer, name, BiasCopy(layer))
        return cls(model, config, name)

    @classmethod
    def misfit(cls, model: nn.Module) -> str | None:
        """See `Adapter.misfit`."""
        if bias_layers(model):
            return None
        return (
            f"bitfit trains biases, and this {type(model).__name__} has none; ia3 trains as few numbers, "
            "selective with layer_norms trains the normalisations"
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {
            f"base_model.model.{path}.bias": change.bias
            for path, _, change in adapted_layers(self.model, self.name)
            if isinstance(change, BiasCopy)
        }
