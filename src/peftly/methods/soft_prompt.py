"""Soft prompts, the common part of prompt tuning and P-tuning: virtual tokens in every text, and their PEFT files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.injection import (
    Position,
    VirtualTokens,
    add_virtual_tokens,
    device_of,
    drop_virtual_tokens,
    inserts_no_tokens,
)
from peftly.methods.method import Adapter, MethodConfig, Setup
from peftly.methods.peft_files import PROMPT_KEYS

__all__ = ["Position", "PromptAdapter", "prompt_shape_error", "token_embeddings"]


class PromptAdapter(Adapter):
    """Virtual tokens in every text. The second of its `peft_types` is for virtual tokens that are not in front.

    Attributes:
        virtual_tokens: the virtual tokens, with their embeddings.
        is_peft_compatible: whether the virtual tokens are in front of the text, as PEFT needs them.
    """

    peft_types: ClassVar[tuple[str, ...]]
    settings: ClassVar[type[MethodConfig]]
    """Class of the settings."""
    peft_limitation: ClassVar[str] = "its virtual tokens are after [CLS] or where a template marks them, not in front"
    peft_keys: ClassVar[frozenset[str]] = PROMPT_KEYS
    copies_prefix: ClassVar[str] = "base_model."
    needs_task_in_peft: ClassVar[bool] = True

    def __init__(
        self, model: PreTrainedModel, config: Any, name: str, embeddings: Tensor, encoder: nn.Module | None = None
    ) -> None:
        """Insert virtual tokens into the texts of `model`.

        Args:
            model: a transformers model.
            config: settings of the method.
            name: name of the adapter.
            embeddings: initial embeddings, (num_virtual_tokens, width), or inputs of `encoder`.
            encoder: network that returns the embeddings; None: the embeddings are trained themselves.
        """
        super().__init__(model, config, name)
        role = model._peftly.hooks.text.role
        position: Position = config.position or ("after_cls" if role == "encoder" else "front")
        self.is_peft_compatible = position == "front"
        device = device_of(model.get_input_embeddings())
        encoder = None if encoder is None else encoder.to(device)
        self.virtual_tokens = VirtualTokens(embeddings.to(device), encoder, position=position)
        add_virtual_tokens(model, name, self.virtual_tokens)

    @staticmethod
    def width(model: PreTrainedModel) -> int:
        """Return the width of the output of the input embedding."""
        return token_embeddings(model.get_input_embeddings(), torch.zeros(1, dtype=torch.long)).shape[1]

    @classmethod
    def attach_for_loading(cls, model: PreTrainedModel, config: Any, name: str) -> Self:
        """See `Adapter.attach_for_loading`."""
        return cls(model, config, name, torch.zeros(config.num_virtual_tokens, cls.width(model)))

    @classmethod
    def unsupported_reason(cls, model: nn.Module) -> str | None:
        """See `Adapter.unsupported_reason`."""
        reason = inserts_no_tokens(model)
        return None if reason is None else f"{reason}; lora works on any model with linear layers"

    @property
    def peft_type(self) -> str:
        """See `Adapter.peft_type`."""
        return self.peft_types[0 if self.is_peft_compatible else 1]

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_virtual_tokens(self.model, self.name)
        super().remove()

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        encoder = self.virtual_tokens.encoder
        if encoder is None:
            return {"prompt_embeddings": self.virtual_tokens.embeddings}
        return {"embedding.weight": self.virtual_tokens.embeddings, **dict(encoder.named_parameters())}

    @property
    def _stacks_in_peft(self) -> int:
        """Number of stacks for which PEFT stores a prompt: 2 in a model that turns text into text, its own default."""
        return 2 if self.model.config.is_encoder_decoder and self.model.can_generate() else 1

    def file_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.file_tensors`."""
        embeddings = self.virtual_tokens.values_for_use()
        if self._stacks_in_peft == 2:
            # PEFT stores embeddings for the decoder too, and never uses them.
            embeddings = torch.cat([embeddings, torch.zeros_like(embeddings)])
        return {"prompt_embeddings": embeddings}

    def load_file_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_file_tensors`."""
        embeddings = self.virtual_tokens.embeddings
        embeddings.copy_(tensors["prompt_embeddings"][: len(embeddings)])

    def training_tensors(self) -> dict[str, Tensor]:
        """Return the parameters of the encoder and its inputs. See `Adapter.training_tensors`."""
        return {} if self.virtual_tokens.encoder is None else dict(self.parameters())

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter.load_training_tensors`."""
        encoder_inputs = self.virtual_tokens.embeddings
        encoder = self.encoder(self.config, encoder_inputs.shape[1], Setup())
        if encoder is None:
            raise KeyError(*tensors)
        saved_inputs = tensors["embedding.weight"]
        encoder.load_state_dict({name: value for name, value in tensors.items() if name != "embedding.weight"})
        encoder_inputs.data.copy_(saved_inputs)
        self.virtual_tokens.encoder = encoder.to(encoder_inputs.device)

    @classmethod
    def encoder(cls, config: Any, width: int, setup: Setup) -> nn.Module | None:
        """Return a new network that computes the embeddings, or None if the embeddings are trained themselves.

        Args:
            config: settings of the method.
            width: width of the embeddings.
            setup: setup of the adapter, for its random generator.
        """
        return None

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        if not self.is_peft_compatible:
            return {"settings": self.config.model_dump(mode="json")}
        text_config = self.model.config.get_text_config(decoder=True)
        return {
            "num_attention_heads": getattr(text_config, "num_attention_heads", 1),  # a Mamba has none
            "num_layers": text_config.num_hidden_layers,
            "num_transformer_submodules": self._stacks_in_peft,
            "token_dim": self.virtual_tokens.values_for_use().shape[1],
            **self.peft_settings(self.config),
        }

    @classmethod
    def peft_settings(cls, config: Any) -> dict[str, Any]:
        """See `Adapter.peft_settings`."""
        fixed_type = {} if config.position is None else {"peft_type": cls.peft_types[config.position != "front"]}
        return {"num_virtual_tokens": config.num_virtual_tokens, **fixed_type}

    @classmethod
    def shape_error(cls, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """See `Adapter.shape_error`. The prompt of an encoder-decoder is there twice."""
        return prompt_shape_error(shapes, config.num_virtual_tokens, 2 * config.num_virtual_tokens)

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig:
        """See `Adapter.config_from_peft`."""
        if peft["peft_type"] == cls.peft_types[1]:
            return cls.settings.from_json(peft["settings"])
        return cls.settings.from_json({"num_virtual_tokens": peft["num_virtual_tokens"], "position": "front"})


def prompt_shape_error(shapes: Mapping[str, tuple[int, ...]], *counts: int) -> str | None:
    """Return why the prompt or prefix in a file has none of these numbers of virtual tokens; None: it has one of them.

    Args:
        shapes: shapes of the tensors, by their names in the file.
        counts: possible numbers.
    """
    shape = shapes.get("prompt_embeddings")
    if shape is None or (len(shape) == 2 and shape[0] in counts):
        return None
    return f"prompt_embeddings is {shape}, and num_virtual_tokens is {counts[0]}"


def token_embeddings(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Return the output of an embedding in fp32. Some models scale this output (Gemma), so the weight is not used.

    Args:
        embedding: input embedding of a model.
        ids: token ids, (count,).

    Returns:
        (count, width).
    """
    with torch.no_grad():
        embeddings: Tensor = embedding(ids.to(device_of(embedding)))
    return embeddings.float()
