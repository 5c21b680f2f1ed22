"""Comparison of a merged model with the adapted model, and of their difference with the effect of rounding.

Three relative differences of logits, ‖difference‖ / ‖reference‖ over sample texts, decide:

- merging: the adapted model against the merged model before rounding, both in fp32. The two compute the same sums in
  different order, so a difference above fp32 rounding is a mistake. How much this rounding is for the model at hand is
  measured, by disturbing the outputs of the adapted layers in their last bit.
- files: the merged and rounded model in memory against the model that plain transformers reads back, both in fp32.
- final: the adapted model in fp32 against the model that is read back, in its own dtype. The limit follows from the
  difference that computing in this dtype makes for the adapted model.
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

__all__ = [
    "Outputs",
    "Parity",
    "compare",
    "logits_of",
    "outputs_of",
    "perplexities",
    "relative_difference",
]

EXACT = 1e-5
"""Maximum relative difference of equal sums in different order in fp32, the same as for batches and padding."""

TIMES_ROUNDING = 4.0
"""Maximum ratio of a difference to the measured rounding: the weights are rounded too, and the texts are few."""

NEW_TOKENS = 16
"""Number of tokens of a greedy continuation."""


@dataclass(frozen=True)
class Parity:
    """Difference between the outputs of the merged model and of the adapted model on sample texts.

    The field names are keys of the JSON report.

    Attributes:
        source: description of the source of the texts.
        texts: number of texts.
        dtype: dtype of the merged model.
        largest, mean: absolute difference of logits, the adapted model in fp32 against the model that was read back.
        relative: relative difference of the same logits, ‖difference‖ / ‖reference‖.
        rounding: relative difference between the adapted model in fp32 and in `dtype`; 0 for fp32.
        merging: relative difference in fp32 from merging.
        fp32_rounding: relative difference in fp32 that the last bits of the adapted layers' outputs make.
        files: relative difference in fp32 from writing and reading.
        agreeing, choices: number of equal most likely tokens or labels, and number of all.
        same_texts, continuations: number of equal greedy continuations, and number of all.
        gap: largest difference of logits by which the merged model prefers its own token at the first different token
            of a continuation; None if all continuations are equal.
        perplexity: perplexity of the texts before and after merging; None for a classifier.
        quantized: for a merge into the original base of adapters that were trained over a quantised base: relative
            difference of the logits over the quantised base, and the perplexity there; None for other merges.
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
    fp32_rounding: float = 0.0
    quantized: tuple[float, float | None] | None = None

    @property
    def fp32_tolerance(self) -> float:
        """Maximum of `merging` and `files` that rounding in fp32 explains."""
        return max(EXACT, TIMES_ROUNDING * self.fp32_rounding)

    @property
    def tolerance(self) -> float:
        """Maximum of `relative` that rounding explains."""
        return max(self.fp32_tolerance, TIMES_ROUNDING * self.rounding)

    @property
    def complaint(self) -> str | None:
        """Difference that rounding does not explain; None if rounding explains all differences."""
        # `not a <= b` is true for NaN, so NaN is a complaint.
        if not self.merging <= self.fp32_tolerance:
            explained = f"where rounding explains {self.fp32_tolerance:.0e}"
            return f"merging moved its logits by {self.merging:.1e} in fp32, {explained}"
        if not self.files <= self.fp32_tolerance:
            return f"the model in the files differs from the model in memory by {self.files:.1e} in fp32"
        if not self.relative <= self.tolerance:
            return (
                f"its logits moved by {self.relative:.1e}, and computing in {self.dtype} explains {self.rounding:.1e}"
            )
        return None

    def rows(self) -> list[tuple[str, str]]:
        """Return a table of the results for people: name and value of each row."""
        rows = [
            ("texts", f"{self.texts} ({self.source})"),
            ("logits: largest difference", f"{self.largest:.2g}"),
            ("logits: mean difference", f"{self.mean:.2g}"),
            ("logits: relative difference", f"{self.relative:.1e} (rounding to {self.dtype}: {self.rounding:.1e})"),
            ("in fp32: by merging, by the files", f"{self.merging:.1e}, {self.files:.1e}"),
            ("most likely choice is equal", f"{count_text(self.agreeing)} of {count_text(self.choices)}"),
        ]
        if self.continuations:
            gap = "" if self.gap is None else f" (first other token preferred by {self.gap:.2g})"
            rows.append(("greedy continuation is equal", f"{self.same_texts} of {self.continuations}{gap}"))
        if self.perplexity is not None:
            rows.append(("perplexity of the whole texts", ", ".join(map(score_text, self.perplexity))))
        if self.quantized is not None:
            difference, perplexity = self.quantized
            suffix = "" if perplexity is None else f", perplexity {score_text(perplexity)}"
            rows.append(("over the quantised base of training", f"relative difference {difference:.1e}{suffix}"))
        return rows


class Outputs(NamedTuple):
    """Outputs of a model for sample texts.

    Attributes:
        logits: logits of each text, (positions, choices), fp32.
        continuations: greedy continuation of each text; empty for a model that does not generate text.
    """

    logits: list[Tensor]
    continuations: list[list[int]]


def logits_of(model: Any, samples: Sequence[Sample]) -> list[Tensor]:
    """Return the logits of each text, (positions, choices), in fp32; the hidden states of a model without a head."""
    logits = []
    with evaluation_mode(model):
        for sample in samples:
            output = model(**{name: _batch_of_one(ids, model) for name, ids in sample.inputs.items()})
            values = output.logits if "logits" in output else output.last_hidden_state
            logits.append(values.reshape(-1, values.shape[-1]).float().cpu())
    return logits


def outputs_of(model: Any, tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample]) -> Outputs:
    """Return the logits of each text, and its greedy continuation by a model that generates text.

    Args:
        model: model, adapted or merged.
        tokenizer: tokenizer of the model.
        samples: texts on which models are compared.
    """
    logits = logits_of(model, samples)
    if not all(sample.prompt for sample in samples):
        return Outputs(logits, [])
    settings = greedy_settings(model, tokenizer)
    settings.update(max_new_tokens=NEW_TOKENS, num_beams=1)
    continuations = []
    with evaluation_mode(model):
        for sample in samples:
            ids = _batch_of_one(sample.prompt, model)
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            continuations.append(output[0, 0 if model.config.is_encoder_decoder else ids.shape[1] :].tolist())
    return Outputs(logits, continuations)


def relative_difference(logits: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return ‖logits - reference‖ / ‖reference‖ over all texts.

    Args:
        logits, reference: tensors of each text, (positions, choices).
    """
    pairs = list(zip(logits, reference, strict=True))
    difference = sum(float((values - expected).double().square().sum()) for values, expected in pairs)
    norm = sum(float(expected.double().square().sum()) for _, expected in pairs)
    return math.sqrt(difference / norm) if norm else math.sqrt(difference)


def compare(
    merged: Any,
    tokenizer: "PreTrainedTokenizerBase",
    samples: Samples,
    before: Outputs,
    rounded: Sequence[Tensor],
    *,
    rounding: float,
    merging: float,
    fp32_rounding: float,
) -> Parity:
    """Compare the merged model with the adapted model.

    Args:
        merged: merged model, read back from its files. Its weights are converted to fp32.
        tokenizer: tokenizer of the model.
        samples: texts on which the models are compared.
        before: outputs of the adapted model in fp32.
        rounded: logits of the merged model in memory after rounding, computed in fp32.
        rounding, merging, fp32_rounding: relative differences, see `Parity`.
    """
    dtype = str(merged.dtype).removeprefix("torch.")
    after = outputs_of(merged, tokenizer, samples.samples)
    pairs = list(zip(before.logits, after.logits, strict=True))
    differences = torch.cat([(old - new).abs().flatten() for old, new in pairs])
    texts = []
    if before.continuations:
        texts = list(zip(samples.samples, before.continuations, after.continuations, strict=True))
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
        fp32_rounding=fp32_rounding,
        files=relative_difference(logits_of(merged.float(), samples.samples), rounded),
        agreeing=sum(int((old.argmax(-1) == new.argmax(-1)).sum()) for old, new in pairs),
        choices=sum(len(old) for old, _ in pairs),
        same_texts=sum(old == new for _, old, new in texts),
        continuations=len(texts),
        gap=max(gaps, default=None),
        perplexity=perplexities(samples, before.logits, after.logits),
    )


def _gap(model: Any, sample: Sample, before: list[int], after: list[int]) -> float | None:
    """Return the difference of the merged model's logits for the first different tokens of two continuations.

    Args:
        model: merged model.
        sample: text with the prompt.
        before: continuation by the adapted model.
        after: continuation by the merged model.

    Returns:
        Logit of the token in `after` minus logit of the token in `before`; None for equal continuations.
    """
    pairs = zip(before, after, strict=False)
    position = next((position for position, (old, new) in enumerate(pairs) if old != new), None)
    if position is None:
        return None
    inputs = {"input_ids": _batch_of_one(sample.prompt + after[:position], model)}
    if model.config.is_encoder_decoder:
        inputs = {
            "input_ids": _batch_of_one(sample.prompt, model),
            "decoder_input_ids": _batch_of_one(after[:position], model),
        }
    with evaluation_mode(model):
        logits = model(**inputs).logits[0, -1].float()
    return float(logits[after[position]] - logits[before[position]])


def perplexities(samples: Samples, *logits: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Return the perplexity of the texts for several models; None for classifiers.

    Args:
        samples: texts on which the models are compared.
        logits: for each model the logits of each text, (positions, choices).
    """
    next_tokens = torch.tensor([token for sample in samples.samples for token in sample.next_tokens])
    if not len(next_tokens):
        return None
    results = []
    for of_model in logits:
        predicting = [
            values[: len(sample.next_tokens)] for values, sample in zip(of_model, samples.samples, strict=True)
        ]
        results.append(float(F.cross_entropy(torch.cat(predicting), next_tokens).exp()))
    return tuple(results)


def _batch_of_one(ids: Sequence[int], model: Any) -> Tensor:
    """Return token ids as a batch on the device of the model, (1, length)."""
    return torch.tensor([ids], device=model.device)
