"""BitFit: training only the bias vectors (Ben Zaken et al. 2022, arXiv:2106.10199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from torch import nn

from peftly.injection import BiasCopy, adapted_layers, add_layer_adapter, bias_layers, is_within, task_modules
from peftly.methods.method import MethodConfig, OwnFormat, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BitFit", "BitFitAdapter"]


class BitFit(MethodConfig):
    """Settings of BitFit, which has none of its own."""

    name: Literal["bitfit"] = "bitfit"


class BitFitAdapter(OwnFormat):
    """Trained copies of the biases of all linear and normalisation layers, outside the modules that a task trains."""

    config: BitFit
    settings: ClassVar[type[MethodConfig]] = BitFit
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_BITFIT",)
    peft_limitation: ClassVar[str] = "PEFT trains biases only together with LoRA"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: BitFit, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        for path, layer in bias_layers(model).items():
            if not is_within(path, task_modules(model)):
                add_layer_adapter(model, layer, name, BiasCopy(layer))
        return cls(model, config, name)

    @classmethod
    def unsupported_reason(cls, model: nn.Module) -> str | None:
        """See `Adapter.unsupported_reason`."""
        if bias_layers(model):
            return None
        return (
            f"bitfit trains biases, and this {type(model).__name__} has none; ia3 trains as few parameters, "
            "selective with layer_norms trains the normalisations"
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {
            f"base_model.model.{path}.bias": layer_adapter.bias
            for path, _, layer_adapter in adapted_layers(self.model, self.name)
            if isinstance(layer_adapter, BiasCopy)
        }
