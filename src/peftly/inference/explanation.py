"""What a learned prompt is near to: each row's nearest words, its length, and how far training has moved it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftly.adapters import attach, attached, detach
from peftly.errors import MethodError
from peftly.methods import MethodConfig, PromptAdapter, embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Explanation", "Neighbour", "Row", "explain"]


@dataclass(frozen=True)
class Neighbour:
    """A word of the vocabulary.

    Attributes:
        word: as the tokenizer decodes it.
        cosine: of the angle between its embedding and the row.
    """

    word: str
    cosine: float


@dataclass(frozen=True)
class Row:
    """One row of a prompt.

    Attributes:
        nearest: the words whose embeddings point most nearly the same way, the nearest first.
        norm: the row's length.
        moved: the length of its difference from where it started; None if that is not known.
        start: the word nearest to where it started, likewise.
    """

    nearest: tuple[Neighbour, ...]
    norm: float
    moved: float | None = None
    start: Neighbour | None = None


@dataclass(frozen=True)
class Explanation:
    """A prompt beside its base's vocabulary.

    Attributes:
        rows: in their order in the text.
        typical_norm: the median length of a word's embedding, to compare the rows' with.
    """

    rows: tuple[Row, ...]
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
    """Return the nearest words of every row of a learned prompt (Lester et al. 2021, section 7).

    Args:
        model: a model with prompt tuning or P-tuning on it; left as it was found.
        tokenizer: the model's own.
        name: which adapter; None: the only one that has such rows.
        neighbours: how many words for each row.
        seed: that the adapter was attached with. Where it started is found by starting it again; None: not asked.
        labels: that it was attached with, likewise.

    Raises:
        MethodError: the model has no such adapter, or it has no rows among the words.
    """
    name = _the_only_prompt(model) if name is None else name
    rows = _rows(model, name)
    before = None if seed is None else _start(model, attached(model)[name].config, tokenizer, seed, labels)
    embedding: Any = model.get_input_embeddings()
    words = embedded(embedding, torch.arange(embedding.weight.shape[0])).cpu()
    lengths = words.norm(dim=1)
    known = min(len(tokenizer), len(words))
    directions = words[:known] / lengths[:known, None].clamp_min(1e-12)
    found = [_nearest(row, directions, tokenizer, neighbours) for row in rows]
    starts = [] if before is None else [_nearest(row, directions, tokenizer, 1)[0] for row in before]
    return Explanation(
        tuple(
            Row(
                nearest=near,
                norm=float(rows[place].norm()),
                moved=None if before is None else float((rows[place] - before[place]).norm()),
                start=starts[place] if starts else None,
            )
            for place, near in enumerate(found)
        ),
        typical_norm=float(lengths[:known].median()),
    )


def _the_only_prompt(model: PreTrainedModel) -> str:
    prompts = [name for name, adapter in attached(model).items() if isinstance(adapter, PromptAdapter)]
    if len(prompts) > 1:
        raise MethodError(f"there are several prompts on this model: {', '.join(prompts)}; name one of them")
    return prompts[0] if prompts else next(iter(attached(model)), "default")


def _rows(model: PreTrainedModel, name: str) -> Tensor:
    adapters = attached(model)
    adapter = adapters.get(name)
    if not isinstance(adapter, PromptAdapter):
        what = f"{name!r} is one of {adapter.config.name}" if adapter else f"there is no adapter {name!r}"
        raise MethodError(f"only prompts can be read as words, and {what}; see prompt_tuning and p_tuning")
    return adapter.change.values().detach().float().cpu()


def _start(
    model: PreTrainedModel,
    config: MethodConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    labels: Sequence[str],
) -> Tensor:
    name = "as-it-started"
    attach(model, config, name=name, tokenizer=tokenizer, labels=labels, seed=seed)
    try:
        return _rows(model, name)
    finally:
        detach(model, name)


def _nearest(row: Tensor, directions: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Neighbour, ...]:
    cosines = directions @ (row / row.norm().clamp_min(1e-12))
    best = cosines.topk(min(count, len(cosines)))
    return tuple(
        Neighbour(str(tokenizer.decode([int(id_)])), float(cosine))
        for id_, cosine in zip(best.indices, best.values, strict=True)
    )
