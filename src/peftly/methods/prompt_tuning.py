"""Prompt tuning: a few trained rows in front of every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.methods._layers import changed_layers
from peftly.methods._method import Adapter, MethodConfig, Setup
from peftly.methods._virtual_tokens import add_virtual_tokens, drop_virtual_tokens

__all__ = ["PromptTuning", "PromptTuningAdapter", "initial_rows"]

COMMON_TOKENS = 5000
"""How many of a vocabulary's most common tokens `init: vocabulary` draws from, as in section 3.2 of the paper."""


class PromptTuning(MethodConfig):
    """Settings of prompt tuning."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(default=8, ge=1)
    """How many rows are trained."""
    init: Literal["text", "vocabulary", "random", "labels"] | None = None
    """Where the rows start: the words of `init_text`, common words of the vocabulary, random numbers at the scale of
    the base's embeddings, or the task's labels. None: the text if there is one, else the vocabulary."""
    init_text: str | None = None
    """The words that `init: text` starts from, repeated or cut to length."""

    @model_validator(mode="after")
    def _text_goes_with_init(self) -> Self:
        if self.init == "text" and not (self.init_text or "").strip():
            raise ValueError("init: text needs init_text, the words to start from")
        if self.init_text is not None and self.init not in (None, "text"):
            raise ValueError(f"init_text is not used by init: {self.init}; leave one of them out")
        return self


class PromptTuningAdapter(Adapter):
    """Trained rows in front of every text of a causal language model."""

    config: PromptTuning
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    copies_prefix: ClassVar[str] = "base_model."

    def __init__(self, model: PreTrainedModel, config: PromptTuning, name: str, rows: Tensor) -> None:
        """Put `rows` (num_virtual_tokens, width of the embeddings) on `model`."""
        super().__init__(model, config, name)
        add_virtual_tokens(model, name, rows)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: PromptTuning, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        return cls(model, config, name, initial_rows(model, config, setup))

    @classmethod
    def blank(cls, model: PreTrainedModel, config: PromptTuning, name: str) -> Self:
        """See `Adapter.blank`."""
        width = _words(model.get_input_embeddings(), torch.zeros(1, dtype=torch.long)).shape[1]
        return cls(model, config, name, torch.zeros(config.num_virtual_tokens, width, device=model.device))

    @classmethod
    def misfit(cls, model: Any) -> str | None:
        """See `Adapter.misfit`."""
        if isinstance(model, PreTrainedModel) and model.can_generate() and not model.config.is_encoder_decoder:
            return None
        return (
            f"prompt_tuning needs a causal language model, and this is a {type(model).__name__}; "
            "lora works on any model with linear layers"
        )

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_virtual_tokens(self.model, self.name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        (_, _, change), *_ = changed_layers(self.model, self.name)
        return {"prompt_embeddings": change.rows}

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        text_config = self.model.config.get_text_config(decoder=True)
        return {
            "num_attention_heads": text_config.num_attention_heads,
            "num_layers": text_config.num_hidden_layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": self.config.num_virtual_tokens,
            # The rows are trained: naming a text here would only make a reader look for its tokenizer.
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "token_dim": self.parameters()["prompt_embeddings"].shape[1],
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> PromptTuning:
        """See `Adapter.config_from_peft`."""
        return PromptTuning(num_virtual_tokens=peft["num_virtual_tokens"], init="random")


def initial_rows(model: PreTrainedModel, config: PromptTuning, setup: Setup) -> Tensor:
    """Return the rows that training starts from, (num_virtual_tokens, width), fp32.

    Real words give the embedding's own output (Gemma scales it). Random rows have its standard deviation: drawn from
    N(0, 1), as other tools do, they would be some fifty times longer than words are.

    Raises:
        MethodError: the init needs a tokenizer, labels or a text that has tokens.
    """
    embedding = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(setup.seed)
    init = config.init or ("text" if config.init_text else "vocabulary")
    count = config.num_virtual_tokens
    if init != "random" and setup.tokenizer is None:
        raise MethodError(f"init: {init} turns words into rows: pass the base's tokenizer, or use init: random")
    if init == "text":
        return _words(embedding, _repeated(_token_ids(setup, config.init_text or ""), count))
    common = _common_tokens(setup, embedding.weight.shape[0])
    drawn = common[torch.randperm(len(common), generator=generator)[:count]]
    if init == "vocabulary":
        return _words(embedding, drawn if len(drawn) == count else _repeated(drawn.tolist(), count))
    if init == "labels":
        if not setup.labels:
            raise MethodError("init: labels needs a labelled task; use init: text or init: vocabulary")
        averages = [_words(embedding, torch.tensor(_token_ids(setup, label))).mean(0) for label in setup.labels]
        rest = _words(embedding, _repeated(drawn.tolist(), count))
        return torch.stack([*averages, *rest])[:count]
    typical = _words(embedding, common)
    return torch.randn(count, typical.shape[1], generator=generator).to(typical.device) * typical.std()


def _words(embedding: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        rows: Tensor = embedding(ids.to(next(embedding.parameters()).device))
    return rows.float()


def _token_ids(setup: Setup, text: str) -> list[int]:
    assert setup.tokenizer is not None
    ids: list[int] = setup.tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodError(f"{text!r} has no tokens to start the prompt from; give some words")
    return ids


def _repeated(ids: list[int], count: int) -> Tensor:
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


def _common_tokens(setup: Setup, vocabulary: int) -> Tensor:
    """Return ids of common whole words. Merge-based vocabularies number their tokens by falling frequency."""
    if setup.tokenizer is None:
        return torch.arange(min(COMMON_TOKENS, vocabulary))
    size = min(len(setup.tokenizer), vocabulary)
    special = set(setup.tokenizer.all_special_ids)
    texts = {id_: setup.tokenizer.decode([id_]).strip() for id_ in range(min(size, 4 * COMMON_TOKENS))}
    words = [id_ for id_, text in texts.items() if id_ not in special and len(text) > 1 and text.isalpha()]
    return torch.tensor(words[:COMMON_TOKENS] or sorted(set(range(size)) - special)[:COMMON_TOKENS])
