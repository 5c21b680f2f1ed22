"""Prefix tuning: trained keys and values in front of the text, in every layer (Li & Liang 2021, arXiv:2101.00190).

P-tuning v2 (Liu et al. 2021, arXiv:2110.07602) is prefix tuning with a trained classifier.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import (
    Prefix,
    add_prefix,
    calls_blocks_of,
    check_placement,
    device_of,
    drop_prefix,
    embedding_in,
    inserts_no_tokens,
    is_multimodal,
    key_value_shape,
    output_heads,
    recorded_states,
    role_of,
    text_stack,
    vocabulary_head,
)
from peftly.methods.initial_tokens import Length, check_init_text, common_tokens, repeated, text_ids, with_length
from peftly.methods.method import Adapter, MethodConfig, Setup, Size
from peftly.methods.peft_files import PROMPT_KEYS
from peftly.methods.soft_prompt import prompt_shape_error

if TYPE_CHECKING:
    from peftly.injection import StackHooks

__all__ = ["PTuningV2", "PTuningV2Adapter", "PrefixProjection", "PrefixTuning", "PrefixTuningAdapter"]


class PrefixTuning(MethodConfig):
    """Settings of prefix tuning."""

    name: Literal["prefix_tuning", "p_tuning_v2"] = "prefix_tuning"
    num_virtual_tokens: Length = 20
    """Number of keys and values in each layer; `text`: as many as `init_text` has tokens."""
    init: Literal["text", "vocabulary", "random", "zero"] | None = None
    """Initial keys and values: those of the tokens of `init_text` (text), of common tokens of the vocabulary
    (vocabulary), random ones with the standard deviation of these (random), or zero. None: `text` with `init_text`,
    else `vocabulary`; with `projection`, `random`."""
    init_text: str | None = None
    """Text for `init: text`. Its tokens are repeated or cut to `num_virtual_tokens`, with a warning."""
    projection: bool = False
    """Train a network that computes the prefix (the reparameterisation of the paper)."""
    projection_dim: Size | None = None
    """Hidden dimension of this network. None: number of key heads x head_dim."""

    @model_validator(mode="after")
    def _init_fits(self) -> Self:
        check_init_text(self.init, self.init_text, self.num_virtual_tokens)
        if self.projection and (self.init in ("text", "vocabulary") or self.init_text is not None):
            raise ValueError("a projection cannot start at given keys and values; use init: random or zero")
        if self.projection_dim is not None and not self.projection:
            raise ValueError("projection_dim is not used without projection: true")
        return self

    @property
    def default_rate_factor(self) -> float:
        """See `MethodConfig.default_rate_factor`. At the rate of plain prefixes the network diverged (docs/log.md)."""
        return 0.1 if self.projection else 1.0


class PTuningV2(PrefixTuning):
    """Settings of P-tuning v2, the same as for prefix tuning."""

    name: Literal["p_tuning_v2"] = "p_tuning_v2"


class PrefixProjection(nn.Sequential):
    """Reparameterisation of the paper, `W_2 tanh(W_1 e + b_1) + b_2`, (count, width) -> (count, total).

    Args:
        width: width of the inputs e, key heads x head_dim.
        hidden: hidden dimension.
        total: layers x 2 x key heads x head_dim.
        generator: random generator of the initial values.
        zero: whether the second linear layer starts at zero.
    """

    def __init__(self, width: int, hidden: int, total: int, generator: torch.Generator, *, zero: bool) -> None:
        super().__init__(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, total))
        for layer in (self[0], self[2]):
            _init_linear(layer, generator)
        if zero:
            for parameter in self[2].parameters():
                nn.init.zeros_(parameter)


class PrefixTuningAdapter(Adapter):
    """Trained keys and values in every layer of a model that supports a key-value cache.

    Attributes:
        prefix: the keys and values.
    """

    config: PrefixTuning
    settings: ClassVar[type[PrefixTuning]] = PrefixTuning
    peft_types: ClassVar[tuple[str, ...]] = ("PREFIX_TUNING", "PEFTLY_PREFIX_TUNING")
    peft_limitation: ClassVar[str] = "in an encoder-decoder model PEFT uses the prefix in half of the layers only"
    peft_keys: ClassVar[frozenset[str]] = PROMPT_KEYS
    copies_prefix: ClassVar[str] = "base_model."
    needs_task_in_peft: ClassVar[bool] = True

    def __init__(
        self, model: PreTrainedModel, config: PrefixTuning, name: str, values: Tensor, encoder: nn.Module | None = None
    ) -> None:
        """Add a prefix to the layers of `model`.

        Args:
            model: a transformers model with a cache.
            config: settings of the method.
            name: name of the adapter.
            values: initial keys and values, (num_virtual_tokens, layers x 2 x key heads x head_dim), or inputs of
                `encoder`.
            encoder: network that returns the keys and values; None: the keys and values are trained themselves.
        """
        super().__init__(model, config, name)
        device = device_of(model)
        prefix = Prefix(values.to(device), _shape(model), None if encoder is None else encoder.to(device))
        add_prefix(model, name, prefix)
        if is_multimodal(model):
            check_placement(model, name)
        self.prefix = prefix

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PrefixTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        layers, heads, head_dim = _shape(model)
        config = with_length(config, setup.tokenizer)
        if not config.projection:
            return cls(model, config, name, _initial_values(model, config, setup))
        _check_call(model)
        encoder_inputs = torch.randn(int(config.num_virtual_tokens), heads * head_dim, generator=setup.generator)
        return cls(model, config, name, encoder_inputs, _projection(config, (layers, heads, head_dim), setup))

    @classmethod
    def attach_for_loading(cls, model: PreTrainedModel, config: PrefixTuning, name: str) -> Self:
        """See `Adapter.attach_for_loading`."""
        layers, heads, head_dim = _shape(model)
        return cls(model, config, name, torch.zeros(int(config.num_virtual_tokens), 2 * layers * heads * head_dim))

    @classmethod
    def unsupported_reason(cls, model: nn.Module) -> str | None:
        """See `Adapter.unsupported_reason`."""
        class_name = type(model).__name__
        if not isinstance(model, PreTrainedModel):
            return (
                f"prefix_tuning needs a transformers model, and this is a {class_name}; lora works on any linear layers"
            )
        role = role_of(model)
        stack = text_stack(model, "target" if role == "source" else role)
        has_cache = stack is not None and "past_key_values" in inspect.signature(stack.forward).parameters
        if not has_cache or (role == "encoder" and getattr(stack, "is_decoder", None) is False):  # T5's encoder
            others = "prompt_tuning and lora work" if inserts_no_tokens(model) is None else "lora works"
            return f"prefix_tuning needs a model with a key-value cache, and {class_name} has none; {others} on it"
        if hasattr(stack, "ngram"):  # ProphetNet
            return (
                f"a prefix has no place in the streams of {class_name} (ngram), which take no cache; lora works on it"
            )
        if calls_blocks_of(model, stack):
            return (
                f"a prefix enters a text stack when it is called, and {class_name} calls the layers of its stack "
                "itself; lora works on it"
            )
        return None

    @property
    def peft_type(self) -> str:
        """See `Adapter.peft_type`. PEFT cannot represent the prefix of an encoder-decoder model."""
        return self.peft_types[1 if self.model.config.is_encoder_decoder else 0]

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_prefix(self.model, self.name)
        super().remove()

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        if self.prefix.encoder is None:
            return {"prompt_embeddings": self.prefix.embeddings}
        named = {f"transform.{name}": parameter for name, parameter in self.prefix.encoder.named_parameters()}
        return {"embedding.weight": self.prefix.embeddings, **named}

    def training_tensors(self) -> dict[str, Tensor]:
        """Return the parameters of the network and its inputs. See `Adapter.training_tensors`."""
        return {} if self.prefix.encoder is None else dict(self.parameters())

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter.load_training_tensors`."""
        if not self.config.projection:
            raise KeyError(*tensors)
        encoder = _projection(self.config, self.prefix.shape, Setup())
        network = {name: value for name, value in tensors.items() if name.startswith("transform.")}
        encoder.load_state_dict({name.removeprefix("transform."): value for name, value in network.items()})
        device = self.prefix.embeddings.device
        # A copy: tensors of a file need not be aligned in memory, and products of unaligned tensors round differently.
        self.prefix.embeddings = nn.Parameter(tensors["embedding.weight"].to(device).clone())
        self.prefix.encoder = encoder.to(device)

    def file_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.file_tensors`."""
        return {"prompt_embeddings": self.prefix.values()}

    def load_file_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_file_tensors`."""
        values = tensors["prompt_embeddings"]
        if self.model.config.is_encoder_decoder and peft["peft_type"] == "PREFIX_TUNING":
            # PEFT splits the tensor into keys and values of self-attention and of cross-attention and drops the latter.
            # So layer i uses the keys and values of layer 2i modulo the number of layers.
            layers = self.prefix.shape[0]
            by_layer = values.view(len(values), layers, -1)
            values = by_layer[:, [2 * layer % layers for layer in range(layers)]].flatten(1)
        self.prefix.embeddings.copy_(values)

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        if self.model.config.is_encoder_decoder:
            return {"settings": self.config.model_dump(mode="json")}
        layers, heads, head_dim = _shape(self.model)
        return {
            "encoder_hidden_size": heads * head_dim,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "token_dim": heads * head_dim,
            **self.peft_settings(self.config),
        }

    @classmethod
    def peft_settings(cls, config: Any) -> dict[str, Any]:
        """See `Adapter.peft_settings`."""
        dim = {} if config.projection_dim is None else {"encoder_hidden_size": config.projection_dim}
        return {
            **dim,
            "init_weights": "zero" if config.init == "zero" else None,
            "num_virtual_tokens": config.num_virtual_tokens,
            "prefix_projection": config.projection,
        }

    @classmethod
    def shape_error(cls, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """See `Adapter.shape_error`."""
        return prompt_shape_error(shapes, config.num_virtual_tokens)

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> PrefixTuning | None:
        """See `Adapter.config_from_peft`. PEFT has one type for prefix tuning and P-tuning v2."""
        settings = cls.settings
        if peft["peft_type"] == cls.peft_types[0]:
            return settings.from_json({"num_virtual_tokens": peft["num_virtual_tokens"], "init": "random"})
        return settings.from_json(peft["settings"]) if peft["settings"]["name"] == settings().name else None


class PTuningV2Adapter(PrefixTuningAdapter):
    """Prefix tuning with a trained classifier."""

    settings: ClassVar[type[PrefixTuning]] = PTuningV2

    @classmethod
    def unsupported_reason(cls, model: nn.Module) -> str | None:
        """See `Adapter.unsupported_reason`."""
        reason = PrefixTuningAdapter.unsupported_reason(model)
        if reason is None and (vocabulary_head(model) is not None or not output_heads(model)):
            return (
                f"p_tuning_v2 trains a classifier with the prefix, and {type(model).__name__} has none; "
                "prefix_tuning is the same without a classifier"
            )
        return reason


def _projection(config: PrefixTuning, shape: tuple[int, int, int], setup: Setup) -> PrefixProjection:
    layers, heads, head_dim = shape
    hidden, total = config.projection_dim or heads * head_dim, 2 * layers * heads * head_dim
    return PrefixProjection(heads * head_dim, hidden, total, setup.generator, zero=config.init == "zero")


def _shape(model: Any) -> tuple[int, int, int]:
    """Return the number of layers, the number of key heads and head_dim."""
    hooks: StackHooks = model._peftly.hooks.attending
    return key_value_shape(hooks)


def _initial_values(model: Any, config: PrefixTuning, setup: Setup) -> Tensor:
    """Return the initial keys and values, (num_virtual_tokens, layers x 2 x key heads x head_dim).

    Raises:
        MethodError: the initialisation needs a tokenizer, or a text that has tokens.
    """
    layers, heads, head_dim = _shape(model)
    count = int(config.num_virtual_tokens)
    init = config.init or ("text" if config.init_text else "vocabulary")
    has_no_weights = device_of(model).type == "meta"
    if init == "zero" or has_no_weights or setup.is_loading:
        _check_call(model)
        return torch.zeros(count, 2 * layers * heads * head_dim)
    if init == "text":
        ids = repeated(text_ids(setup.tokenizer, config.init_text or ""), count, "init_text")
    else:
        common = common_tokens(setup.tokenizer, _vocabulary_size(model))
        ids = repeated(common[torch.randperm(len(common), generator=setup.generator)[:count]].tolist(), count)
    states = recorded_states(model._peftly.hooks.attending, ids).float()
    if init == "random":
        scale = states.std(dim=(1, 2, 3), keepdim=True).cpu()
        states = scale * torch.randn(states.shape, generator=setup.generator)
    return states.permute(2, 0, 1, 3).reshape(count, -1)


def _vocabulary_size(model: Any) -> int:
    """Return the number of token embeddings of a model, or of the stack that reads its text.

    Raises:
        MethodError: there are none.
    """
    text = model._peftly.hooks.text
    for module in (model, text and text.stack):
        if (weight := getattr(embedding_in(module), "weight", None)) is not None:
            return int(weight.shape[0])
    raise MethodError(
        f"a prefix starts at the states of tokens, and {type(model).__name__} embeds none; lora works on it"
    )


def _check_call(model: Any) -> None:
    """Do nothing if a prefix can be placed in the layers of a model.

    Raises:
        MethodError: it cannot, as a call of the model shows.
    """
    if not next(model.parameters()).is_meta:
        recorded_states(model._peftly.hooks.attending, torch.zeros(1, dtype=torch.long))


def _init_linear(layer: Any, generator: torch.Generator) -> None:
    """Initialise a linear layer as torch does, with the random generator of the adapter."""
    bound = layer.in_features**-0.5
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
