"""Prompt tuning: trained embeddings of virtual tokens in every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import Position
from peftly.methods.initial_tokens import Length, check_init_text, common_tokens, repeated, text_ids, with_length
from peftly.methods.method import MethodConfig, Setup, Size
from peftly.methods.soft_prompt import PromptAdapter, token_embeddings

__all__ = ["PromptTuning", "PromptTuningAdapter", "ResidualEncoder", "initial_embeddings"]


class PromptTuning(MethodConfig):
    """Settings of prompt tuning."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: Length = 20
    """Number of virtual tokens; `text`: as many as `init_text` has tokens."""
    init: Literal["text", "vocabulary", "random", "labels"] | None = None
    """Initial embeddings: those of the tokens of `init_text` (text), of common tokens of the vocabulary (vocabulary),
    random ones with the standard deviation of these (random), or those of the labels, one per line (labels). None:
    `text` with `init_text`; else `labels` if the model generates the labels of the data; else `vocabulary`."""
    init_text: str | None = None
    """Text for `init: text`. Its tokens are repeated or cut to `num_virtual_tokens`, with a warning."""
    residual_dim: Size | None = None
    """Hidden dimension of a residual network through which the embeddings are trained. None: no such network."""
    position: Position | None = None
    """Position of the virtual tokens: in front of the text (front), after its first token (after_cls), or where the
    template of the data marks them, as `{prompt:3}` (template). None: front; in encoders after_cls."""

    @property
    def num_marked_tokens(self) -> int:
        """See `MethodConfig.num_marked_tokens`."""
        count = self.num_virtual_tokens
        return count if self.position == "template" and count != "text" else 0

    @model_validator(mode="after")
    def _text_goes_with_init(self) -> Self:
        check_init_text(self.init, self.init_text, self.num_virtual_tokens)
        return self


class ResidualEncoder(nn.Module):
    """Residual reparameterisation `e + LayerNorm(W_up relu(W_down e))` of all embeddings (arXiv:2305.03937).

    The weight of the LayerNorm starts at zero, so training starts at the embeddings themselves.

    Args:
        width: width of the embeddings.
        hidden: hidden dimension.
        generator: random generator of the initial values.
    """

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up, self.norm = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width)
        for layer in (self.down, self.up):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings that the model reads, (count, width) -> (count, width)."""
        residual: Tensor = self.norm(self.up(torch.relu(self.down(embeddings))))
        return embeddings + residual


class PromptTuningAdapter(PromptAdapter):
    """Virtual tokens with trained embeddings in every text."""

    config: PromptTuning
    settings: ClassVar[type[MethodConfig]] = PromptTuning
    peft_types: ClassVar[tuple[str, ...]] = ("PROMPT_TUNING", "PEFTLY_PROMPT_TUNING")

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PromptTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        config = with_length(config, setup.tokenizer)
        embeddings = initial_embeddings(model, config, setup)
        return cls(model, config, name, embeddings, cls.encoder(config, embeddings.shape[1], setup))

    @classmethod
    def encoder(cls, config: PromptTuning, width: int, setup: Setup) -> nn.Module | None:
        """See `PromptAdapter.encoder`."""
        return None if config.residual_dim is None else ResidualEncoder(width, config.residual_dim, setup.generator)

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        peft = super().peft_config()
        if not self.is_peft_compatible:
            return peft
        # The trained embeddings replace the initial ones. With a text here, PEFT would load a tokenizer for nothing.
        return {
            **peft,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }


def initial_embeddings(model: PreTrainedModel, config: PromptTuning, setup: Setup) -> Tensor:
    """Return the initial embeddings of the virtual tokens, (num_virtual_tokens, width), in fp32.

    Random embeddings have the standard deviation of the embeddings of common tokens. Embeddings from N(0, 1), as other
    tools draw them, have a norm about fifty times larger.

    Raises:
        MethodError: the initialisation needs a tokenizer, a labelled task, or a text that has tokens.
    """
    embedding = model.get_input_embeddings()
    # A classifier does not generate the answers.
    generates = model.get_output_embeddings() is not None
    init = config.init or ("text" if config.init_text else "labels" if setup.answers and generates else "vocabulary")
    if setup.is_loading:
        init = "random"
    count = int(config.num_virtual_tokens)
    if init in ("text", "labels") and setup.tokenizer is None:
        raise MethodError(f"init: {init} starts from tokens: pass the tokenizer of the base, or use init: random")
    if init == "text":
        ids = text_ids(setup.tokenizer, config.init_text or "")
        return token_embeddings(embedding, repeated(ids, count, "init_text"))
    if init == "labels":
        if not setup.answers:
            raise MethodError("init: labels needs a labelled task; use init: text or init: vocabulary")
        # The seed decides the order, so that the members of an ensemble differ and no label is always the last.
        order = torch.randperm(len(setup.answers), generator=setup.generator).tolist()
        # The space is that in front of an answer inside a text.
        ids = text_ids(setup.tokenizer, " " + "\n".join(setup.answers[index] for index in order).strip())
        return token_embeddings(embedding, repeated(ids, count, "the text of init: labels" if len(ids) > count else ""))
    common = common_tokens(setup.tokenizer, embedding.weight.shape[0])
    drawn = common[torch.randperm(len(common), generator=setup.generator)[:count]]
    if init == "vocabulary":
        return token_embeddings(embedding, repeated(drawn.tolist(), count))
    reference = token_embeddings(embedding, common)
    return torch.randn(count, reference.shape[1], generator=setup.generator).to(reference.device) * reference.std()
