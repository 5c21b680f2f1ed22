"""What prompt tuning and P-tuning share: rows in every text, and the PEFT files that they are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.injection import Position, VirtualTokens, add_virtual_tokens, drop_virtual_tokens
from peftly.methods.method import Adapter, MethodConfig, Setup

__all__ = ["Position", "PromptAdapter", "embedded"]


class PromptAdapter(Adapter):
    """Rows in every text. Of its `peft_types` the second is for rows in other places than PEFT's: in front."""

    peft_types: ClassVar[tuple[str, ...]]
    settings: ClassVar[type[MethodConfig]]
    beyond_peft: ClassVar[str] = "its rows stand after [CLS] or where a template marks them, not in front of the text"
    copies_prefix: ClassVar[str] = "base_model."

    def __init__(
        self, model: PreTrainedModel, config: Any, name: str, rows: Tensor, encoder: nn.Module | None = None
    ) -> None:
        """Put `rows` (num_virtual_tokens, width of the embeddings), or rows for `encoder`, on `model`."""
        super().__init__(model, config, name)
        role = model._peftly.bodies.text.role
        position: Position = config.position or ("after_cls" if role == "encoder" else "front")
        self.is_like_peft = position == "front"
        device = model.get_input_embeddings().weight.device
        encoder = None if encoder is None else encoder.to(device)
        self.change = VirtualTokens(rows.to(device), encoder, position=position)
        add_virtual_tokens(model, name, self.change)

    @staticmethod
    def width(model: PreTrainedModel) -> int:
        """Return the width of the embeddings' output."""
        return embedded(model.get_input_embeddings(), torch.zeros(1, dtype=torch.long)).shape[1]

    @classmethod
    def blank(cls, model: PreTrainedModel, config: Any, name: str) -> Self:
        """See `Adapter.blank`."""
        return cls(model, config, name, torch.zeros(config.num_virtual_tokens, cls.width(model)))

    @classmethod
    def misfit(cls, model: nn.Module) -> str | None:
        """See `Adapter.misfit`."""
        reads_words = isinstance(model, PreTrainedModel) and isinstance(model.get_input_embeddings(), nn.Embedding)
        if reads_words:
            return None
        return (
            f"virtual tokens need a transformers model that reads words, and {type(model).__name__} is none; "
            "lora works on any model with linear layers"
        )

    @property
    def peft_type(self) -> str:
        """See `Adapter.peft_type`."""
        return self.peft_types[0 if self.is_like_peft else 1]

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_virtual_tokens(self.model, self.name)
        super().remove()

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        encoder = self.change.encoder
        if encoder is None:
            return {"prompt_embeddings": self.change.rows}
        return {"embedding.weight": self.change.rows, **dict(encoder.named_parameters())}

    def own_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.own_tensors`."""
        rows = self.change.values()
        if self.model.config.is_encoder_decoder:
            rows = torch.cat([rows, torch.zeros_like(rows)])  # PEFT has rows for the decoder too, and never uses them
        return {"prompt_embeddings": rows}

    def load_own_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_own_tensors`."""
        self.change.rows.copy_(tensors["prompt_embeddings"][: len(self.change.rows)])

    def training_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.training_tensors`: a network that makes the rows."""
        return {} if self.change.encoder is None else dict(self.parameters())

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter.resume`."""
        encoder = self.encoder(self.config, self.change.rows.shape[1], Setup())
        if encoder is None:
            raise KeyError(*tensors)
        rows = tensors["embedding.weight"]
        encoder.load_state_dict({name: value for name, value in tensors.items() if name != "embedding.weight"})
        self.change.rows.data.copy_(rows)
        self.change.encoder = encoder.to(self.change.rows.device)

    @classmethod
    def encoder(cls, config: Any, width: int, setup: Setup) -> nn.Module | None:
        """Return a fresh network that makes the rows, or None if they are trained themselves."""
        return None

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        if not self.is_like_peft:
            return {"settings": self.config.model_dump(mode="json")}
        text_config = self.model.config.get_text_config(decoder=True)
        return {
            "num_attention_heads": text_config.num_attention_heads,
            "num_layers": text_config.num_hidden_layers,
            "num_transformer_submodules": 2 if self.model.config.is_encoder_decoder else 1,
            "num_virtual_tokens": self.config.num_virtual_tokens,
            "token_dim": self.change.values().shape[1],
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig:
        """See `Adapter.config_from_peft`."""
        if peft["peft_type"] == cls.peft_types[1]:
            return cls.settings.model_validate(peft["settings"])
        return cls.settings.model_validate({"num_virtual_tokens": peft["num_virtual_tokens"], "position": "front"})


def embedded(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Return what an embedding gives for `ids`, in fp32. Its output, since some models scale it (Gemma)."""
    with torch.no_grad():
        rows: Tensor = embedding(ids.to(next(embedding.parameters()).device))
    return rows.float()
