"""Predictions for rows of data, for every task: labels with probabilities, tags of words, numbers, or text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from peftly.data import (
    EncodedExample,
    Example,
    RowFormat,
    chat_ends,
    collate,
    encode_conversation,
    encode_label_prompts,
    encode_prompts,
    encode_sources,
    encode_words,
    label_answers,
    label_ids,
)
from peftly.errors import ConfigError
from peftly.inference.batches import on_device, pad_id, use_batch
from peftly.inference.classification import SCORES
from peftly.inference.generation import generate
from peftly.inference.label_scoring import score_answers, score_labels
from peftly.inference.logits import check_finite, model_inputs
from peftly.models import labels_of, max_input_tokens, max_tokens, output_kind, reads_padding, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answer", "PredictionKind", "Prompt", "RowPredictor"]

PredictionKind = Literal["label", "labels", "numbers", "tags", "text"]
"""Kind of the predictions of a model: one label, any number of labels, numbers, a tag for each word, or text."""


class Answer(NamedTuple):
    """Prediction for one row.

    Attributes:
        prediction: a label, a list of labels, a number or a number by label, a list of tags (None for a word without a
            tag), or a text; None for a row that the model cannot read.
        probabilities: probability of each label; None for other predictions.
        is_cut: whether tokens of the row were cut, as it is longer than the model reads.
    """

    prediction: Any = None
    probabilities: dict[str, float] | None = None
    is_cut: bool = False

    def rounded(self) -> "Answer":
        """Return the answer with the probabilities as they are written, with six decimals."""
        if self.probabilities is None:
            return self
        return self._replace(probabilities={name: round(value, 6) for name, value in self.probabilities.items()})


class Prompt(NamedTuple):
    """Prompt of one row as token ids.

    Attributes:
        encoded: the token ids.
        words: for tags, the index of the word that begins with each token; None for other tokens.
        num_words: number of words.
    """

    encoded: EncodedExample
    words: tuple[int | None, ...] = ()
    num_words: int = 0


@dataclass(frozen=True)
class RowPredictor:
    """Predictions of a model for the rows of a format.

    Attributes:
        model: model with the head of a task, in evaluation mode while it predicts.
        tokenizer: tokenizer of the model.
        row_format: format of the rows.
        max_length: maximum number of tokens that the model reads; for labels of a language model, with the label. None:
            no other maximum than the positions of the model.
        generation: settings of `generate`, for text.
        is_text: whether a language model writes the label of a row as text, instead of scoring each label.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    row_format: RowFormat
    max_length: int | None
    generation: Mapping[str, Any]
    is_text: bool = False

    @property
    def kind(self) -> PredictionKind:
        """Kind of the predictions.

        Raises:
            ConfigError: the model is for no task, or classifies texts and the rows are conversations.
        """
        task = task_of(self.model)
        if task is None:
            raise ConfigError(
                f"a {type(self.model).__name__} is for no task of peftly, so it predicts nothing for rows"
            )
        if task == "token_classification":
            return "tags"
        if task == "sequence_classification":
            if self.row_format.kind == "chat":
                raise ConfigError("a classifier reads texts, and these rows are conversations; write each as one text")
            return _OUTPUTS[output_kind(self.model.config)]
        return "label" if self.row_format.kind == "label" and not self.is_text else "text"

    @property
    def reads_padding(self) -> bool:
        """Whether all rows of a batch must have the same length, so that the batch has no padding."""
        is_left = self.kind == "text" and not self.model.config.is_encoder_decoder
        return reads_padding(self.model, "left" if is_left else "right")

    def encode(self, examples: Sequence[Example]) -> list[Prompt | None]:
        """Return the prompts of examples as token ids; None for a prompt without a token, or without room.

        Args:
            examples: examples of `row_prompt`.
        """
        if self.kind == "tags":
            texts = [example.words or example.prompt.split() for example in examples]
            encoded = encode_words(texts, self.tokenizer, self._limit)
            return [
                Prompt(example, tuple(first_tokens), len(words)) if any(example.trained) else None
                for words, (example, first_tokens) in zip(texts, encoded, strict=True)
            ]
        return [Prompt(prompt) if prompt is not None and prompt.input_ids else None for prompt in self._texts(examples)]

    def _texts(self, examples: Sequence[Example]) -> Sequence[EncodedExample | None]:
        if self.row_format.kind == "chat":
            return [encode_conversation(example, self.tokenizer, self._limit) for example in examples]
        if task_of(self.model) == "sequence_classification" or self.model.config.is_encoder_decoder:
            return encode_sources(examples, self.tokenizer, self._limit)
        if self.kind == "label":
            return encode_label_prompts(examples, self.tokenizer, self.row_format, self._limit or _NO_MAXIMUM)
        return encode_prompts(examples, self.tokenizer, self._limit)

    @property
    def _limit(self) -> int | None:
        """Maximum number of tokens of a prompt, by the setting and by the positions of the model."""
        limit = max_tokens(self.model) if self.kind == "label" else max_input_tokens(self.model)
        if self.kind == "text" and limit is not None and not self.model.config.is_encoder_decoder:
            room = int(self.generation.get("max_new_tokens", 128))
            if limit <= room:
                raise ConfigError(
                    f"max_new_tokens={room} leaves no room for a prompt: the model has positions for {limit} tokens"
                )
            limit -= room
        return min((each for each in (limit, self.max_length) if each is not None), default=None)

    def predict(
        self, prompts: Sequence[Prompt], *, adapter: str | None = None, seeds: Sequence[int] | None = None
    ) -> list[Answer]:
        """Return the prediction for each prompt, in one batch. Call this in evaluation mode.

        Args:
            prompts: prompts of `encode`, at least one.
            adapter: name of the adapter to use; None: the active ones.
            seeds: seed of the draws for each prompt, for text.

        Raises:
            AdapterError: the model computes values that are not numbers.
        """
        encoded = [prompt.encoded for prompt in prompts]
        adapters = None if adapter is None else [adapter] * len(prompts)
        if self.kind == "text":
            texts = self._generate(encoded, adapters, seeds)
            return [Answer(text.strip(), is_cut=_is_cut(example)) for text, example in zip(texts, encoded, strict=True)]
        with use_batch(self.model, encoded, adapters):
            if task_of(self.model) in ("causal_lm", "seq2seq_lm"):
                names, scores = self._score(encoded)
                return self._answers(names, scores.softmax(-1), encoded, _most_likely)
            batch = on_device(collate(encoded, pad_id=pad_id(self.tokenizer)), self.model)
            logits: Tensor = self.model(**model_inputs(self.model, batch)).logits.double().cpu()
        names = labels_of(self.model)
        if self.kind == "tags":
            check_finite(*(row[: len(example.input_ids)] for row, example in zip(logits, encoded, strict=True)))
            guesses = logits.argmax(-1).tolist()
            return [self._tags(prompt, tags, names) for prompt, tags in zip(prompts, guesses, strict=True)]
        scores = SCORES[output_kind(self.model.config)](logits)
        return self._answers(names, scores, encoded, _PREDICTIONS[self.kind])

    def _generate(
        self, encoded: Sequence[EncodedExample], adapters: list[str] | None, seeds: Sequence[int] | None
    ) -> list[str]:
        settings = dict(self.generation)
        if self.row_format.kind == "chat":
            stop = settings.get("stop") or ()
            settings["stop"] = (*([stop] if isinstance(stop, str) else stop), *chat_ends(self.tokenizer).texts)
        if seeds is not None:
            settings["seed"] = seeds
        return generate(self.model, self.tokenizer, encoded, **settings, batch_size=len(encoded), adapters=adapters)

    def _score(self, encoded: Sequence[EncodedExample]) -> tuple[list[str], Tensor]:
        """Return the labels of a language model, and the log-probability of each after each prompt."""
        padding = pad_id(self.tokenizer)
        if self.model.config.is_encoder_decoder:
            answers = label_answers(self.row_format, self.tokenizer)
            return list(answers), score_answers(self.model, encoded, list(answers.values()), pad_id=padding)[0]
        labels = label_ids(self.row_format, self.tokenizer)
        prompts = [example.input_ids for example in encoded]
        return list(labels), score_labels(self.model, prompts, list(labels.values()), pad_id=padding)[0]

    def _answers(
        self,
        names: Sequence[str],
        scores: Tensor,
        encoded: Sequence[EncodedExample],
        predict: Callable[[dict[str, float]], Any],
    ) -> list[Answer]:
        answers = []
        check_finite(scores)
        for values, example in zip(scores.tolist(), encoded, strict=True):
            by_name = dict(zip(names, values, strict=True))
            probabilities = None if self.kind == "numbers" else by_name
            answers.append(Answer(predict(by_name), probabilities, _is_cut(example)))
        return answers

    def _tags(self, prompt: Prompt, guesses: Sequence[int], names: Sequence[str]) -> Answer:
        tags: list[str | None] = [None] * prompt.num_words
        # Not strict: the guesses at the padding on the right have no word.
        for word, guess in zip(prompt.words, guesses, strict=False):
            if word is not None:
                tags[word] = names[guess]
        return Answer(tags, is_cut=_is_cut(prompt.encoded))


_NO_MAXIMUM = 2**62
_OUTPUTS: dict[str, PredictionKind] = {"class": "label", "labels": "labels", "numbers": "numbers"}


def _is_cut(encoded: EncodedExample) -> bool:
    return encoded.num_truncated > 0


def _numbers(scores: dict[str, float]) -> float | dict[str, float]:
    """Return the numbers of a model with seven digits, which fp32 has: one alone, or several by name."""
    numbers = {name: float(f"{score:.7g}") for name, score in scores.items()}
    return numbers if len(numbers) > 1 else next(iter(numbers.values()))


def _most_likely(scores: dict[str, float]) -> str:
    return max(scores, key=scores.__getitem__)


def _likely(scores: dict[str, float]) -> list[str]:
    return [label for label, score in scores.items() if score >= 0.5]


_PREDICTIONS: dict[PredictionKind, Callable[[dict[str, float]], Any]] = {
    "label": _most_likely,
    "labels": _likely,
    "numbers": _numbers,
}
"""Predictions of a sequence classifier from the values of its labels."""
