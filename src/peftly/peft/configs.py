"""PEFT's configurations of prompt tuning, P-tuning, prefix tuning and (IA)³."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peftly.errors import ConfigError
from peftly.peft.config import PeftConfig, PromptLearningConfig
from peftly.peft.default_targets import IA3_FEEDFORWARD, IA3_TARGETS, target_modules_on
from peftly.peft.names import PeftType, PromptEncoderReparameterizationType, PromptTuningInit

__all__ = ["IA3Config", "PrefixTuningConfig", "PromptEncoderConfig", "PromptTuningConfig"]


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Configuration of prompt tuning.

    Attributes:
        prompt_tuning_init: initial embeddings; random ones have the standard deviation of the embeddings of the base,
            where those of PEFT have 1.
        prompt_tuning_init_text: text for the initialisation TEXT.
        tokenizer_name_or_path: tokenizer for it.
        tokenizer_kwargs: arguments for opening this tokenizer.
    """

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    method_type: ClassVar[PeftType | None] = PeftType.PROMPT_TUNING

    def __post_init__(self) -> None:
        """Check the arguments; see `PeftConfig`."""
        super().__post_init__()
        starts_from_text = self.prompt_tuning_init == PromptTuningInit.TEXT
        for name in ("tokenizer_name_or_path", "prompt_tuning_init_text"):
            if starts_from_text and not getattr(self, name):
                raise ConfigError(f"When prompt_tuning_init='TEXT', {name} can't be {getattr(self, name)}.")
        if self.tokenizer_kwargs and not starts_from_text:
            raise ConfigError("tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.")

    def fresh_settings(self) -> dict[str, Any]:
        """See `PeftConfig.fresh_settings`."""
        inits: dict[PromptTuningInit, dict[str, Any]] = {
            PromptTuningInit.TEXT: {"init": "text", "init_text": self.prompt_tuning_init_text},
            PromptTuningInit.SAMPLE_VOCAB: {"init": "vocabulary"},
            PromptTuningInit.RANDOM: {"init": "random"},
        }
        if self.prompt_tuning_init not in list(PromptTuningInit):
            raise ConfigError(f"prompt_tuning_init is {self.prompt_tuning_init!r}; use {', '.join(PromptTuningInit)}")
        return inits[PromptTuningInit(self.prompt_tuning_init)]


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """Configuration of P-tuning.

    Attributes:
        encoder_reparameterization_type: network that computes the embeddings, MLP or LSTM.
        encoder_hidden_size: hidden dimension of the network; None: the width of the embeddings.
        encoder_num_layers: number of layers of the LSTM.
        encoder_dropout: dropout probability between the layers of the LSTM.
    """

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    method_type: ClassVar[PeftType | None] = PeftType.P_TUNING

    def fresh_settings(self) -> dict[str, Any]:
        """See `PeftConfig.fresh_settings`."""
        return {
            "encoder": self.encoder_reparameterization_type.lower(),
            "encoder_dim": self.encoder_hidden_size,
            "encoder_layers": self.encoder_num_layers,
            "encoder_dropout": self.encoder_dropout,
        }


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Configuration of prefix tuning.

    Attributes:
        init_weights: "zero": the prefix starts at zero; None: random values, with the standard deviation of the keys
            and values of the base, where those of PEFT have 1.
        encoder_hidden_size: hidden dimension of the network of `prefix_projection`.
        prefix_projection: whether a network computes the prefix in training.
    """

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    method_type: ClassVar[PeftType | None] = PeftType.PREFIX_TUNING

    def fresh_settings(self) -> dict[str, Any]:
        """See `PeftConfig.fresh_settings`."""
        if self.init_weights not in (None, "zero"):
            raise ConfigError(f"init_weights is {self.init_weights!r}; use None or 'zero'")
        return {
            "init": self.init_weights or "random",
            "projection": self.prefix_projection,
            "projection_dim": self.encoder_hidden_size if self.prefix_projection else None,
        }


@dataclass
class IA3Config(PeftConfig):
    """Configuration of (IA)³.

    Attributes:
        target_modules: names of layers, a regular expression for whole paths, or "all-linear"; None: the layers that
            PEFT has for the type of the model.
        exclude_modules: names of layers, or a regular expression, that are left out.
        feedforward_modules: names among `target_modules` of layers whose input is scaled, not the output.
        fan_in_fan_out: not used; peftly sees how a layer stores its weight.
        modules_to_save: names of modules of which trained copies are saved.
        init_ia3_weights: whether the vectors start at one; False: they are random.
    """

    target_modules: Any = None
    exclude_modules: Any = None
    feedforward_modules: Any = None
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    init_ia3_weights: bool = True

    method_type: ClassVar[PeftType | None] = PeftType.IA3

    def __post_init__(self) -> None:
        """Check the arguments; see `PeftConfig`."""
        super().__post_init__()
        for name in ("target_modules", "exclude_modules", "feedforward_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        are_sets = isinstance(self.target_modules, set) and isinstance(self.feedforward_modules, set)
        if are_sets and not self.feedforward_modules <= self.target_modules:
            raise ConfigError("`feedforward_modules` should be a subset of `target_modules`")

    def entries_on(self, model: nn.Module) -> dict[str, Any]:
        """See `PeftConfig.entries_on`."""
        targets = target_modules_on(model, self.target_modules, IA3_TARGETS, self.task_type)
        inputs = self.feedforward_modules
        if inputs is None:
            inputs = target_modules_on(model, None, IA3_FEEDFORWARD, self.task_type, "feedforward_modules")
        return {"target_modules": targets, "feedforward_modules": sorted(inputs) if isinstance(inputs, set) else inputs}

    def fresh_settings(self) -> dict[str, Any]:
        """See `PeftConfig.fresh_settings`."""
        return {"init": "ones" if self.init_ia3_weights else "random"}
