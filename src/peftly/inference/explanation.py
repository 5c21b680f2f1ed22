"""Reading of a learned prompt: the vocabulary tokens nearest to each prompt embedding, its norm, and its movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftly.adapters import attach, attached, detach
from peftly.errors import MethodError
from peftly.methods import MethodConfig, PromptAdapter, token_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Explanation", "Neighbour", "PromptEmbedding", "explain"]


@dataclass(frozen=True)
class Neighbour:
    """A token of the vocabulary near a prompt embedding.

    Attributes:
        token: text of the token, as the tokenizer decodes it.
        cosine: cosine similarity of the token's embedding and the prompt embedding.
    """

    token: str
    cosine: float


@dataclass(frozen=True)
class PromptEmbedding:
    """One prompt embedding.

    Attributes:
        nearest: tokens with the highest cosine similarity, the most similar first.
        norm: norm of the prompt embedding.
        moved: norm of its difference from its initial value; None if the initial value is unknown.
        start: token nearest to its initial value; None if the initial value is unknown.
    """

    nearest: tuple[Neighbour, ...]
    norm: float
    moved: float | None = None
    start: Neighbour | None = None


@dataclass(frozen=True)
class Explanation:
    """A prompt, compared with the vocabulary of its base.

    Attributes:
        embeddings: prompt embeddings, in the order in which the model reads them.
        typical_norm: median norm of the vocabulary's embeddings, for comparison.
    """

    embeddings: tuple[PromptEmbedding, ...]
    typical_norm: float


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | None = None,
    neighbours: int = 5,
    seed: int | None = None,
    labels: Sequence[str] = (),
) -> Explanation:
    """Return the vocabulary tokens nearest to every embedding of a learned prompt (Lester et al. 2021, section 7).

    Args:
        model: model with a prompt-tuning or P-tuning adapter. It is not changed.
        tokenizer: tokenizer of the model.
        name: name of the adapter; None: the only soft prompt of the model.
        neighbours: number of tokens per prompt embedding.
        seed: seed with which the adapter was attached. The initial prompt is computed again from it; None: no
            comparison with the initial prompt.
        labels: labels with which the adapter was attached.

    Raises:
        MethodError: the model has no such adapter, or the adapter is not a soft prompt.
    """
    name = _only_prompt(model) if name is None else name
    prompt = _prompt(model, name)
    initial = None if seed is None else _initial_prompt(model, attached(model)[name].config, tokenizer, seed, labels)
    module: Any = model.get_input_embeddings()
    vocabulary = token_embeddings(module, torch.arange(module.weight.shape[0])).cpu()
    # Ids past the tokenizer's are padding of the embedding matrix.
    vocabulary = vocabulary[: len(tokenizer)]
    norms = vocabulary.norm(dim=1)
    directions = vocabulary / norms[:, None].clamp_min(1e-12)
    embeddings = []
    for index, embedding in enumerate(prompt):
        start = None if initial is None else initial[index]
        embeddings.append(
            PromptEmbedding(
                nearest=_nearest(embedding, directions, tokenizer, neighbours),
                norm=float(embedding.norm()),
                moved=None if start is None else float((embedding - start).norm()),
                start=None if start is None else _nearest(start, directions, tokenizer, 1)[0],
            )
        )
    return Explanation(tuple(embeddings), typical_norm=float(norms.median()))


def _only_prompt(model: PreTrainedModel) -> str:
    """Return the name of the only soft prompt of a model, or of its first adapter if there is no soft prompt."""
    prompts = [name for name, adapter in attached(model).items() if isinstance(adapter, PromptAdapter)]
    if len(prompts) > 1:
        raise MethodError(f"there are several prompts on this model: {', '.join(prompts)}; name one of them")
    return prompts[0] if prompts else next(iter(attached(model)), "default")


def _prompt(model: PreTrainedModel, name: str) -> Tensor:
    """Return the prompt embeddings of an adapter, (num_virtual_tokens, hidden_size), fp32 on the CPU."""
    adapter = attached(model).get(name)
    if not isinstance(adapter, PromptAdapter):
        reason = f"{name!r} is an adapter of {adapter.config.name}" if adapter else f"there is no adapter {name!r}"
        raise MethodError(f"explain needs a soft prompt (prompt_tuning, p_tuning), and {reason}")
    return adapter.virtual_tokens.values_for_use().detach().float().cpu()


def _initial_prompt(
    model: PreTrainedModel,
    config: MethodConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    labels: Sequence[str],
) -> Tensor:
    """Return the initial prompt embeddings of an adapter, (num_virtual_tokens, hidden_size), fp32 on the CPU."""
    name = "initial-prompt"
    attach(model, config, name=name, tokenizer=tokenizer, answers=labels, seed=seed)
    try:
        return _prompt(model, name)
    finally:
        detach(model, name)


def _nearest(
    embedding: Tensor, directions: Tensor, tokenizer: PreTrainedTokenizerBase, count: int
) -> tuple[Neighbour, ...]:
    """Return the tokens with the highest cosine similarity to an embedding.

    Args:
        embedding: prompt embedding, (hidden_size,).
        directions: embeddings of the vocabulary with norm 1, (vocabulary, hidden_size).
        tokenizer: tokenizer of the model.
        count: number of tokens.
    """
    cosines = directions @ (embedding / embedding.norm().clamp_min(1e-12))
    best = cosines.topk(min(count, len(cosines)))
    return tuple(
        Neighbour(str(tokenizer.decode([int(token)])), float(cosine))
        for token, cosine in zip(best.indices, best.values, strict=True)
    )
