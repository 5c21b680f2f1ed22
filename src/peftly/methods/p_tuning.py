"""P-tuning v1: virtual tokens that a small network computes during training (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.injection import Position
from peftly.methods.method import MethodConfig, Setup, Size
from peftly.methods.soft_prompt import PromptAdapter

__all__ = ["PTuning", "PTuningAdapter", "PTuningEncoder"]


class PTuning(MethodConfig):
    """Settings of P-tuning v1."""

    name: Literal["p_tuning"] = "p_tuning"
    num_virtual_tokens: Size = 20
    """Number of virtual tokens."""
    encoder: Literal["lstm", "mlp"] = "mlp"
    """Network: a bidirectional LSTM and two linear layers (lstm), or three linear layers (mlp)."""
    encoder_dim: Size | None = None
    """Hidden dimension of the network. None: the width of the embeddings."""
    encoder_layers: int = Field(default=2, ge=1, le=100)
    """Number of layers of the LSTM."""
    encoder_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability between the layers of the LSTM."""
    position: Position | None = None
    """Position of the virtual tokens: in front of the text (front), after its first token (after_cls), or where the
    template of the data marks them, as `{prompt:3}` (template). None: front; in encoders after_cls."""

    @property
    def num_marked_tokens(self) -> int:
        """See `MethodConfig.num_marked_tokens`."""
        return self.num_virtual_tokens if self.position == "template" else 0

    @property
    def default_rate_factor(self) -> float:
        """See `MethodConfig.default_rate_factor`. With the rate of the MLP, the LSTM diverged (docs/log.md)."""
        return 0.1 if self.encoder == "lstm" else 1.0


class PTuningEncoder(nn.Module):
    """Prompt encoder: a network that computes the embeddings of the virtual tokens.

    Args:
        config: settings of P-tuning.
        width: width of the embeddings.
        generator: random generator of the initial values.
    """

    def __init__(self, config: PTuning, width: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = config.encoder_dim or width
        self.lstm_head: nn.LSTM | None = None
        if config.encoder == "lstm":
            dropout = config.encoder_dropout if config.encoder_layers > 1 else 0.0
            self.lstm_head = nn.LSTM(width, hidden, config.encoder_layers, dropout=dropout, bidirectional=True)
            self.mlp_head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        else:
            self.mlp_head = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
            )
        with torch.no_grad():
            for layer in self.mlp_head:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)
            for parameter in [] if self.lstm_head is None else self.lstm_head.parameters():
                parameter.uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings of the virtual tokens, (count, width) -> (count, width)."""
        if self.lstm_head is not None:
            inputs, _ = self.lstm_head(inputs)
        embeddings: Tensor = self.mlp_head(inputs)
        return embeddings


class PTuningAdapter(PromptAdapter):
    """Virtual tokens in every text, with embeddings that a network computes during training."""

    config: PTuning
    settings: ClassVar[type[MethodConfig]] = PTuning
    peft_types: ClassVar[tuple[str, ...]] = ("P_TUNING", "PEFTLY_P_TUNING")

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        width = cls.width(model)
        encoder_inputs = torch.randn(config.num_virtual_tokens, width, generator=setup.generator)
        return cls(model, config, name, encoder_inputs, cls.encoder(config, width, setup))

    @classmethod
    def encoder(cls, config: PTuning, width: int, setup: Setup) -> nn.Module:
        """See `PromptAdapter.encoder`."""
        return PTuningEncoder(config, width, setup.generator)

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        peft = super().peft_config()
        if not self.is_peft_compatible:
            return peft
        return {"encoder_hidden_size": peft["token_dim"], **peft}

    @classmethod
    def peft_settings(cls, config: PTuning) -> dict[str, Any]:
        """See `Adapter.peft_settings`."""
        dim = {} if config.encoder_dim is None else {"encoder_hidden_size": config.encoder_dim}
        return {
            **super().peft_settings(config),
            **dim,
            "encoder_dropout": config.encoder_dropout,
            "encoder_num_layers": config.encoder_layers,
            "encoder_reparameterization_type": config.encoder.upper(),
        }
