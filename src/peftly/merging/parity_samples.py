"""Inputs on which a model is compared before and after merging."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data import EncodedExample, Example, answer_ids, collate, encode_example_prompt, encode_sources, read
from peftly.errors import ConfigError, DataError
from peftly.inference import model_inputs
from peftly.models import max_tokens, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Sample", "Samples", "samples_for"]

_MAX_SAMPLES = 8
_MAX_TOKENS = 64
"""Maximum number of tokens of a sample. The fp32 logits of a language model are stored over the whole vocabulary."""


class Sample(NamedTuple):
    """One input on which models are compared.

    Attributes:
        inputs: arguments of the model's forward pass by name, each (length,).
        next_tokens: next token at each position, for the perplexity; empty for a classifier.
        prompt: tokens from which the model generates; empty for a model that does not generate text.
    """

    inputs: dict[str, list[int]]
    next_tokens: list[int]
    prompt: list[int]


class Samples(NamedTuple):
    """Inputs on which models are compared.

    Attributes:
        samples: one sample or more.
        source: description of their source.
    """

    samples: list[Sample]
    source: str


def samples_for(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    text: Path | None,
    held_out: Callable[[], tuple[Sequence[EncodedExample], str]] | None,
) -> Samples:
    """Return the inputs on which a model is compared before and after merging.

    Args:
        model: adapted model.
        tokenizer: tokenizer of the model.
        text: file with one text in each line.
        held_out: function that returns held-out examples and a description of their source, where no file is given.
            Without both, or if there are no held-out examples, the samples are texts of peftly's sample data.

    Raises:
        DataError: the file cannot be read, or has no text.
    """
    if text is not None:
        examples: Sequence[EncodedExample] = _encoded(_lines(text), model, tokenizer)
        source = f"lines of {text}"
    else:
        examples, source = _held_out_or_sample_data(model, tokenizer, held_out)
    samples = [_sample(example, model) for example in examples[:_MAX_SAMPLES] if example.input_ids]
    if not samples:
        raise DataError(f"{text or source}: there is no text with a token")
    return Samples(samples, source)


def _held_out_or_sample_data(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    held_out: Callable[[], tuple[Sequence[EncodedExample], str]] | None,
) -> tuple[Sequence[EncodedExample], str]:
    """Return held-out examples, or texts of the sample data with the reason why there are no held-out examples."""
    reason = "the adapter is not in a run folder"
    if held_out is not None:
        try:
            return held_out()
        except (ConfigError, DataError, OSError) as error:
            # The part after a semicolon is advice, which does not apply here.
            reason = str(error).partition(";")[0].strip()
    return _encoded(_sample_texts(), model, tokenizer), f"texts of peftly's sample data, as {reason}"


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that are not blank."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line for line in lines if line]


def _sample_texts() -> list[str]:
    """Return texts of peftly's sample data."""
    folder = files("peftly") / "sample_data" / "complaints"
    (table,) = read(str(folder / "test.jsonl")).values()
    return [str(row["text"]) for row in table.rows[:_MAX_SAMPLES]]


def _encoded(texts: Sequence[str], model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[EncodedExample]:
    """Return texts as tokens; for an encoder-decoder each text is also the answer."""
    examples = [Example(text) for text in texts]
    if task_of(model) == "causal_lm":
        return [encode_example_prompt(example, tokenizer) for example in examples]
    sources = encode_sources(examples, tokenizer, min(_MAX_TOKENS, max_tokens(model) or _MAX_TOKENS))
    if task_of(model) != "seq2seq_lm":
        return sources
    answers = answer_ids(texts, tokenizer)
    return [
        EncodedExample(source.input_ids, source.trained, answer=answer)
        for source, answer in zip(sources, answers, strict=True)
    ]


def _sample(example: EncodedExample, model: Any) -> Sample:
    """Return the sample of an example, cut to the maximum number of tokens."""
    import torch

    task = task_of(model)
    if task not in ("causal_lm", "seq2seq_lm"):
        batch = model_inputs(model, collate([example], pad_id=0))
        return Sample({name: tensor[0].tolist() for name, tensor in batch.items()}, [], [])
    max_length = min(_MAX_TOKENS, (max_tokens(model) or 2 * _MAX_TOKENS) // 2)
    ids = example.input_ids[:max_length]
    inputs = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if task == "causal_lm":
        # The prompt of a text without a completion is its first half.
        completion = example.trained.index(True) if True in example.trained else 0
        prompt_length = completion if 1 < completion <= len(ids) else max(1, len(ids) // 2)
        return Sample(inputs, ids[1:], ids[:prompt_length])
    answer = (example.answer or [])[:max_length]
    shifted = model.prepare_decoder_input_ids_from_labels(torch.tensor([answer], device=model.device))
    return Sample({**inputs, "decoder_input_ids": shifted[0].tolist()}, answer, ids)
