"""Prompt tuning: a few trained rows in front of every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import Position
from peftly.methods.initial_tokens import common_tokens, repeated, token_ids
from peftly.methods.method import MethodConfig, Setup
from peftly.methods.soft_prompt import PromptAdapter, embedded

__all__ = ["PromptTuning", "PromptTuningAdapter", "ResidualEncoder", "initial_rows"]


class PromptTuning(MethodConfig):
    """Settings of prompt tuning."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(default=20, ge=1)
    """How many rows are trained."""
    init: Literal["text", "vocabulary", "random", "labels"] | None = None
    """Where the rows start: the words of `init_text`, common words of the vocabulary, random numbers at the scale of
    the base's embeddings, or the answers of a labelled task ("Label: complaint", line by line). None: the text if
    there is one, else the answers if the model is to write some, else the vocabulary."""
    init_text: str | None = None
    """The words that `init: text` starts from, repeated or cut to length."""
    residual_dim: int | None = Field(default=None, ge=1)
    """Train the rows through a residual network of this inner dimension; None: train the rows themselves."""
    position: Position | None = None
    """Where the rows stand: in front of the text, after its first token, or where the data's template marks them, as
    `{prompt:3}`; None: in front, in encoders after the first token."""

    @property
    def marked_tokens(self) -> int:
        """See `MethodConfig.marked_tokens`."""
        return self.num_virtual_tokens if self.position == "template" else 0

    @model_validator(mode="after")
    def _text_goes_with_init(self) -> Self:
        if self.init == "text" and not (self.init_text or "").strip():
            raise ValueError("init: text needs init_text, the words to start from")
        if self.init_text is not None and self.init not in (None, "text"):
            raise ValueError(f"init_text is not used by init: {self.init}; leave one of them out")
        return self


class ResidualEncoder(nn.Module):
    """Rows plus what a small network makes of them, shared by all rows (Residual Prompt Tuning, arXiv:2305.03937).

    The network's normalisation starts with a gain of zero, so that training starts at the rows themselves.
    """

    def __init__(self, width: int, inner: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)
        for layer in (self.down, self.up):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows as the model reads them, (count, width)."""
        change: Tensor = self.norm(self.up(torch.relu(self.down(rows))))
        return rows + change


class PromptTuningAdapter(PromptAdapter):
    """Trained rows in every text that a model reads."""

    config: PromptTuning
    settings: ClassVar[type[MethodConfig]] = PromptTuning
    peft_types: ClassVar[tuple[str, ...]] = ("PROMPT_TUNING", "PEFTLY_PROMPT_TUNING")

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PromptTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        rows = initial_rows(model, config, setup)
        return cls(model, config, name, rows, cls.encoder(config, rows.shape[1], setup))

    @classmethod
    def encoder(cls, config: PromptTuning, width: int, setup: Setup) -> nn.Module | None:
        """See `PromptAdapter.encoder`."""
        return None if config.residual_dim is None else ResidualEncoder(width, config.residual_dim, setup.generator)

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        peft = super().peft_config()
        if not self.is_like_peft:
            return peft
        # The rows are trained: naming a text here would only make a reader look for its tokenizer.
        return {
            **peft,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }


def initial_rows(model: PreTrainedModel, config: PromptTuning, setup: Setup) -> Tensor:
    """Return the rows that training starts from, (num_virtual_tokens, width), fp32.

    Random rows have the standard deviation of words' own: drawn from N(0, 1), as other tools do, they would be some
    fifty times longer than words are.

    Raises:
        MethodError: the init needs a tokenizer, labels or a text that has tokens.
    """
    embedding = model.get_input_embeddings()
    # A model that only classifies does not write its answers, so they mean nothing to it.
    writes = model.get_output_embeddings() is not None
    init = config.init or ("text" if config.init_text else "labels" if setup.labels and writes else "vocabulary")
    count = config.num_virtual_tokens
    if init != "random" and setup.tokenizer is None:
        raise MethodError(f"init: {init} turns words into rows: pass the base's tokenizer, or use init: random")
    if init == "text":
        return embedded(embedding, repeated(token_ids(setup.tokenizer, config.init_text or ""), count))
    if init == "labels":
        if not setup.labels:
            raise MethodError("init: labels needs a labelled task; use init: text or init: vocabulary")
        # In an order of the seed's own: members of an ensemble start apart, and no label is always the last.
        order = torch.randperm(len(setup.labels), generator=setup.generator).tolist()
        lines = "\n".join(setup.labels[place] for place in order)
        return embedded(embedding, repeated(token_ids(setup.tokenizer, lines), count))
    common = common_tokens(setup.tokenizer, embedding.weight.shape[0])
    drawn = common[torch.randperm(len(common), generator=setup.generator)[:count]]
    if init == "vocabulary":
        return embedded(embedding, repeated(drawn.tolist(), count))
    typical = embedded(embedding, common)
    return torch.randn(count, typical.shape[1], generator=setup.generator).to(typical.device) * typical.std()
