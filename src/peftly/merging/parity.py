"""Whether a merged model says what the adapted one said: how far its answers moved, and how far rounding moves them.

Three differences decide, each of logits on sample texts and relative to their length, ‖difference‖ / ‖reference‖:

- merging, in fp32: the adapted model against the merged one before it is rounded. Both compute the same sums in another
  order, so nothing but a mistake makes this larger than fp32 rounding.
- the files: the merged and rounded model in memory against what plain transformers reads back, both computed in fp32.
- the answer as it will be used: the adapted model in fp32 against what is read back in its own dtype. The yardstick is
  how far the adapted model itself moves when it is computed in that dtype.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from peftly.inference import greedy_settings
from peftly.injection import evaluation_mode
from peftly.merging.parity_samples import Sample, Samples
from peftly.utils import count_text, score_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answers", "Parity", "answers_of", "compare", "logits_of", "perplexities", "relative_difference"]

EXACT = 1e-5
"""What fp32 rounding may make of the same sums in another order: what peftly promises of batches and padding, too."""

TIMES_ROUNDING = 4.0
"""How many times the yardstick a merged model may be away: its weights are rounded too, and the texts are few."""

NEW_TOKENS = 16


@dataclass(frozen=True)
class Parity:
    """What merging did to the answers of a model on sample texts.

    Attributes:
        source: where the texts come from.
        texts: how many there are.
        dtype: of the merged model.
        largest, mean: absolute differences of logits, the adapted model in fp32 against what was read back.
        relative: the same as ‖difference‖ / ‖reference‖.
        rounding: as much of it as the adapted model shows when it is computed in `dtype`; 0 for fp32.
        merging, files: relative differences in fp32 that merging, and writing and reading, have made.
        agreeing, choices: likeliest words or labels that are the same, of how many.
        same_texts, continuations: greedy continuations that are the same, of how many.
        gap: the most by which the merged model prefers another word where a continuation first differs; None: nowhere.
        perplexity: of the texts, before and after; None for a classifier.
        quantized: of a merge into another base than the quantised one that the adapter was trained over: how far logits
            over that one are away, as ‖difference‖ / ‖reference‖, and the perplexity there.
    """

    source: str
    texts: int
    dtype: str
    largest: float
    mean: float
    relative: float
    rounding: float
    merging: float
    files: float
    agreeing: int
    choices: int
    same_texts: int
    continuations: int
    gap: float | None
    perplexity: tuple[float, ...] | None
    quantized: tuple[float, float | None] | None = None

    @property
    def allowed(self) -> float:
        """How far the answers may be away."""
        return max(EXACT, TIMES_ROUNDING * self.rounding)

    @property
    def complaint(self) -> str | None:
        """What rounding does not explain, None if it explains everything."""
        # Compared so that what is no number is a complaint.
        if not self.merging <= EXACT:
            return f"merging moved its logits by {self.merging:.1e} in fp32, where rounding explains {EXACT:.0e}"
        if not self.files <= EXACT:
            return f"what was read back differs from what was written by {self.files:.1e}, which rounding does not do"
        if not self.relative <= self.allowed:
            return (
                f"its logits moved by {self.relative:.1e}, and computing in {self.dtype} explains {self.rounding:.1e}"
            )
        return None

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures with their names, for people."""
        rows = [
            ("texts", f"{self.texts} ({self.source})"),
            ("logits: largest difference", f"{self.largest:.2g}"),
            ("logits: mean difference", f"{self.mean:.2g}"),
            ("logits: relative difference", f"{self.relative:.1e} (rounding to {self.dtype}: {self.rounding:.1e})"),
            ("in fp32: by merging, by the files", f"{self.merging:.1e}, {self.files:.1e}"),
            ("likeliest choice is the same", f"{count_text(self.agreeing)} of {count_text(self.choices)}"),
        ]
        if self.continuations:
            where = "" if self.gap is None else f" (first other word preferred by {self.gap:.2g})"
            rows.append(("greedy continuation is the same", f"{self.same_texts} of {self.continuations}{where}"))
        if self.perplexity is not None:
            rows.append(("perplexity before, after", ", ".join(map(score_text, self.perplexity))))
        if self.quantized is not None:
            away, perplexity = self.quantized
            said = "" if perplexity is None else f", perplexity {score_text(perplexity)}"
            rows.append(("over the quantised base of training", f"{away:.1e} away{said}"))
        return rows


class Answers(NamedTuple):
    """What a model says of sample texts.

    Attributes:
        logits: of each text, (positions, choices), fp32.
        written: the greedy continuation of each text, if the model writes.
    """

    logits: list[Tensor]
    written: list[list[int]]


def logits_of(model: Any, samples: Sequence[Sample]) -> list[Tensor]:
    """Return the logits of each text (of a body without a head: its hidden states), (positions, choices), fp32."""
    found = []
    with evaluation_mode(model):
        for sample in samples:
            output = model(**{name: _row(ids, model) for name, ids in sample.inputs.items()})
            logits = output.logits if "logits" in output else output.last_hidden_state
            found.append(logits.reshape(-1, logits.shape[-1]).float().cpu())
    return found


def answers_of(model: Any, tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample]) -> Answers:
    """Return the logits of each text, and how a model that writes goes on, taking the likeliest word."""
    logits = logits_of(model, samples)
    if not all(sample.prompt for sample in samples):
        return Answers(logits, [])
    settings = greedy_settings(model, tokenizer)
    settings.update(max_new_tokens=NEW_TOKENS, num_beams=1)
    written = []
    with evaluation_mode(model):
        for sample in samples:
            ids = _row(sample.prompt, model)
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            written.append(output[0, 0 if model.config.is_encoder_decoder else ids.shape[1] :].tolist())
    return Answers(logits, written)


def relative_difference(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return ‖difference‖ / ‖reference‖ over all texts."""
    pairs = list(zip(found, reference, strict=True))
    difference = sum(float((one - other).double().square().sum()) for one, other in pairs)
    length = sum(float(other.double().square().sum()) for _, other in pairs)
    return math.sqrt(difference / length) if length else math.sqrt(difference)


def compare(
    merged: Any,
    tokenizer: "PreTrainedTokenizerBase",
    samples: Samples,
    before: Answers,
    rounded: Sequence[Tensor],
    *,
    rounding: float,
    merging: float,
) -> Parity:
    """Return what became of the answers.

    Args:
        merged: the model as it was read back; it is in fp32 afterwards.
        tokenizer: its own.
        samples: the texts.
        before: of the adapted model in fp32.
        rounded: logits of the merged model in memory, with its weights rounded, in fp32.
        rounding, merging: see `Parity`.
    """
    dtype = str(merged.dtype).removeprefix("torch.")
    after = answers_of(merged, tokenizer, samples.samples)
    pairs = list(zip(before.logits, after.logits, strict=True))
    differences = torch.cat([(one - other).abs().flatten() for one, other in pairs])
    texts = list(zip(samples.samples, before.written, after.written, strict=True)) if before.written else []
    gaps = [gap for text in texts if (gap := _gap(merged, *text)) is not None]
    return Parity(
        source=samples.source,
        texts=len(samples.samples),
        dtype=dtype,
        largest=float(differences.max()),
        mean=float(differences.mean()),
        relative=relative_difference(after.logits, before.logits),
        rounding=rounding,
        merging=merging,
        files=relative_difference(logits_of(merged.float(), samples.samples), rounded),
        agreeing=sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs),
        choices=sum(len(one) for one, _ in pairs),
        same_texts=sum(one == other for _, one, other in texts),
        continuations=len(texts),
        gap=max(gaps, default=None),
        perplexity=perplexities(samples, before.logits, after.logits),
    )


def _gap(model: Any, sample: Sample, one: list[int], other: list[int]) -> float | None:
    """Return by how much the model prefers its own word where two continuations first differ; None if they do not."""
    place = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return None
    inputs = {"input_ids": _row(sample.prompt + other[:place], model)}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": _row(sample.prompt, model), "decoder_input_ids": _row(other[:place], model)}
    with evaluation_mode(model):
        logits = model(**inputs).logits[0, -1].float()
    return float(logits[other[place]] - logits[one[place]])


def perplexities(samples: Samples, *answers: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Return how surprised several models are by the texts, by the logits of each; None for classifiers."""
    following = torch.tensor([token for sample in samples.samples for token in sample.following])
    if not len(following):
        return None
    found = []
    for one in answers:
        rows = [logits[: len(sample.following)] for logits, sample in zip(one, samples.samples, strict=True)]
        found.append(float(F.cross_entropy(torch.cat(rows), following).exp()))
    return tuple(found)


def _row(ids: Sequence[int], model: Any) -> Tensor:
    return torch.tensor([ids], device=model.device)
