"""Prefix tuning: trained keys and values in front of the text, in every layer (Li & Liang 2021, arXiv:2101.00190).

P-tuning v2 (Liu et al. 2021, arXiv:2110.07602) is the same with a trained task head, for classification.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import Prefix, add_prefix, drop_prefix, key_value_shape, recorded_states
from peftly.methods.initial_tokens import common_tokens, repeated, token_ids
from peftly.methods.method import Adapter, MethodConfig, Setup

if TYPE_CHECKING:
    from peftly.injection import StackHooks

__all__ = ["PTuningV2", "PTuningV2Adapter", "PrefixProjection", "PrefixTuning", "PrefixTuningAdapter"]


class PrefixTuning(MethodConfig):
    """Settings of prefix tuning."""

    name: Literal["prefix_tuning", "p_tuning_v2"] = "prefix_tuning"
    num_virtual_tokens: int = Field(default=20, ge=1)
    """How many places the prefix has."""
    init: Literal["text", "vocabulary", "random", "zero"] | None = None
    """Where keys and values start: at those of the words of `init_text`, or of common words, at random numbers of their
    scale, or at zero. None: the text if there is one, else the vocabulary; with `projection`, random."""
    init_text: str | None = None
    """The words that `init: text` starts from, repeated or cut to length."""
    projection: bool = False
    """Train a network that makes the prefix instead (the paper's reparameterisation)."""
    projection_dim: int | None = Field(default=None, ge=1)
    """The inner dimension of that network; None: that of the keys of all heads."""

    @model_validator(mode="after")
    def _init_fits(self) -> Self:
        if self.init == "text" and not (self.init_text or "").strip():
            raise ValueError("init: text needs init_text, the words to start from")
        if self.init_text is not None and self.init not in (None, "text"):
            raise ValueError(f"init_text is not used by init: {self.init}; leave one of them out")
        if self.projection and (self.init in ("text", "vocabulary") or self.init_text is not None):
            raise ValueError("a projection cannot start at given keys and values; use init: random or zero")
        if self.projection_dim is not None and not self.projection:
            raise ValueError("projection_dim is not used without projection: true")
        return self


class PTuningV2(PrefixTuning):
    """Settings of P-tuning v2: those of prefix tuning."""

    name: Literal["p_tuning_v2"] = "p_tuning_v2"


class PrefixProjection(nn.Sequential):
    """The paper's network: rows of the width of the keys, Linear, Tanh, Linear, to all keys and values."""

    def __init__(self, width: int, inner: int, total: int, generator: torch.Generator, *, zero: bool) -> None:
        super().__init__(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, total))
        for layer in (self[0], self[2]):
            seeded_linear(layer, generator)
        if zero:
            for parameter in self[2].parameters():
                nn.init.zeros_(parameter)


class PrefixTuningAdapter(Adapter):
    """Trained keys and values in every layer of a model that has a cache."""

    config: PrefixTuning
    settings: ClassVar[type[PrefixTuning]] = PrefixTuning
    peft_types: ClassVar[tuple[str, ...]] = ("PREFIX_TUNING", "PEFTLY_PREFIX_TUNING")
    beyond_peft: ClassVar[str] = "of a decoder behind an encoder PEFT reaches half of the layers only"
    copies_prefix: ClassVar[str] = "base_model."

    def __init__(
        self, model: PreTrainedModel, config: PrefixTuning, name: str, rows: Tensor, encoder: nn.Module | None = None
    ) -> None:
        """Put `rows` (num_virtual_tokens, layers x 2 x heads x head_dim), or rows for `encoder`, on `model`."""
        super().__init__(model, config, name)
        device = next(model.parameters()).device
        prefix = Prefix(rows.to(device), _shape(model), None if encoder is None else encoder.to(device))
        add_prefix(model, name, prefix)
        self.prefix = prefix

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PrefixTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        layers, heads, width = _shape(model)
        if not config.projection:
            return cls(model, config, name, _initial_rows(model, config, setup))
        rows = torch.randn(config.num_virtual_tokens, heads * width, generator=setup.generator)
        return cls(model, config, name, rows, _projection(config, (layers, heads, width), setup))

    @classmethod
    def blank(cls, model: PreTrainedModel, config: PrefixTuning, name: str) -> Self:
        """See `Adapter.blank`."""
        layers, heads, width = _shape(model)
        return cls(model, config, name, torch.zeros(config.num_virtual_tokens, 2 * layers * heads * width))

    @classmethod
    def misfit(cls, model: nn.Module) -> str | None:
        """See `Adapter.misfit`."""
        kind = type(model).__name__
        if not isinstance(model, PreTrainedModel):
            return f"prefix_tuning needs a transformers model, and this is a {kind}; lora works on any linear layers"
        stack: Any = model.get_decoder()
        if "past_key_values" not in inspect.signature(stack.forward).parameters:
            return (
                f"prefix_tuning enters through a cache, and {kind} has none; prompt_tuning works on it, "
                "as lora does on any linear layers"
            )
        return None

    @property
    def peft_type(self) -> str:
        """See `Adapter.peft_type`. Of a decoder behind an encoder PEFT reaches half the layers only."""
        return self.peft_types[1 if self.model.config.is_encoder_decoder else 0]

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_prefix(self.model, self.name)
        super().remove()

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        if self.prefix.encoder is None:
            return {"prompt_embeddings": self.prefix.rows}
        named = {f"transform.{name}": parameter for name, parameter in self.prefix.encoder.named_parameters()}
        return {"embedding.weight": self.prefix.rows, **named}

    def training_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.training_tensors`: the network that makes the prefix."""
        return {} if self.prefix.encoder is None else dict(self.parameters())

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter.resume`."""
        if not self.config.projection:
            raise KeyError(*tensors)
        encoder = _projection(self.config, self.prefix.shape, Setup())
        start = "transform."
        encoder.load_state_dict({name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)})
        device = self.prefix.rows.device
        # A copy, for a file's tensors need not be aligned in memory, and products of unaligned ones round otherwise.
        self.prefix.rows = nn.Parameter(tensors["embedding.weight"].to(device).clone())
        self.prefix.encoder = encoder.to(device)

    def own_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.own_tensors`."""
        return {"prompt_embeddings": self.prefix.values()}

    def load_own_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_own_tensors`."""
        rows = tensors["prompt_embeddings"]
        if self.model.config.is_encoder_decoder and peft["peft_type"] == "PREFIX_TUNING":
            # PEFT deals the layers' keys and values out in fours, for cross-attention too, of which it then throws two
            # away: layer i has those of layer 2i, counted around.
            layers = self.prefix.shape[0]
            by_layer = rows.view(len(rows), layers, -1)
            rows = by_layer[:, [2 * layer % layers for layer in range(layers)]].flatten(1)
        self.prefix.rows.copy_(rows)

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        if self.model.config.is_encoder_decoder:
            return {"settings": self.config.model_dump(mode="json")}
        layers, heads, width = _shape(self.model)
        return {
            "encoder_hidden_size": self.config.projection_dim or heads * width,
            "init_weights": "zero" if self.config.init == "zero" else None,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": self.config.num_virtual_tokens,
            "prefix_projection": self.config.projection,
            "token_dim": heads * width,
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> PrefixTuning | None:
        """See `Adapter.config_from_peft`. PEFT has one type for both methods: our own record tells them apart."""
        kind = cls.settings
        if peft["peft_type"] == cls.peft_types[0]:
            return kind(num_virtual_tokens=peft["num_virtual_tokens"], init="random")
        return kind.model_validate(peft["settings"]) if peft["settings"]["name"] == kind().name else None


class PTuningV2Adapter(PrefixTuningAdapter):
    """Prefix tuning with a trained classifier."""

    settings: ClassVar[type[PrefixTuning]] = PTuningV2

    @classmethod
    def misfit(cls, model: nn.Module) -> str | None:
        """See `Adapter.misfit`."""
        reason = PrefixTuningAdapter.misfit(model)
        if reason is None and isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
            return (
                f"p_tuning_v2 trains a classifier with the prefix, and {type(model).__name__} has none; "
                "prefix_tuning is the same without"
            )
        return reason


def _projection(config: PrefixTuning, shape: tuple[int, int, int], setup: Setup) -> PrefixProjection:
    layers, heads, width = shape
    inner, total = config.projection_dim or heads * width, 2 * layers * heads * width
    return PrefixProjection(heads * width, inner, total, setup.generator, zero=config.init == "zero")


def _shape(model: Any) -> tuple[int, int, int]:
    body: StackHooks = model._peftly.bodies.attending
    return key_value_shape(body)


def _initial_rows(model: Any, config: PrefixTuning, setup: Setup) -> Tensor:
    layers, heads, width = _shape(model)
    count = config.num_virtual_tokens
    init = config.init or ("text" if config.init_text else "vocabulary")
    if init == "zero":
        return torch.zeros(count, 2 * layers * heads * width)
    if init == "text":
        if setup.tokenizer is None:
            raise MethodError("init: text turns words into keys and values: pass the base's tokenizer")
        ids = repeated(token_ids(setup.tokenizer, config.init_text or ""), count)
    else:
        common = common_tokens(setup.tokenizer, model.get_input_embeddings().weight.shape[0])
        ids = repeated(common[torch.randperm(len(common), generator=setup.generator)[:count]].tolist(), count)
    states = recorded_states(model._peftly.bodies.attending, ids).float()
    if init == "random":
        scale = states.std(dim=(1, 2, 3), keepdim=True).cpu()
        states = scale * torch.randn(states.shape, generator=setup.generator)
    return states.permute(2, 0, 1, 3).reshape(count, -1)


def seeded_linear(layer: Any, generator: torch.Generator) -> None:
    """Initialise a linear layer as torch does, from a generator of its own."""
    bound = layer.in_features**-0.5
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
