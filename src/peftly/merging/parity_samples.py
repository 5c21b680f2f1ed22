"""Sample texts that a model is compared on before and after merging, as the model reads them."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data import EncodedExample, Example, answer_ids, collate, encode_prompt_of, encode_sources, read
from peftly.errors import ConfigError, DataError
from peftly.inference import read_by
from peftly.models import task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HeldOutExamples", "Sample", "Samples", "samples_for"]

MOST = 8
MOST_TOKENS = 64
"""Of each text: the logits of a model that writes are kept, in fp32, over the whole vocabulary."""


class Sample(NamedTuple):
    """One text.

    Attributes:
        inputs: what the model reads, by the names of its arguments.
        following: the token that is to follow at each position; empty for a classifier.
        prompt: what a continuation starts from; empty for a model that does not write.
    """

    inputs: dict[str, list[int]]
    following: list[int]
    prompt: list[int]


class Samples(NamedTuple):
    """Sample texts.

    Attributes:
        samples: the texts.
        source: where they come from, for people.
    """

    samples: list[Sample]
    source: str


HeldOutExamples = Callable[[Any, "PreTrainedTokenizerBase"], tuple[Sequence[EncodedExample], str]]
"""From a model and its tokenizer to encoded examples and the words for their source."""


def samples_for(
    model: Any, tokenizer: "PreTrainedTokenizerBase", text: Path | None, held_out: HeldOutExamples | None
) -> Samples:
    """Return texts on which a model is compared before and after merging.

    Args:
        model: the adapted model.
        tokenizer: tokenizer of the model.
        text: file with one text in each line.
        held_out: source of examples where no file is given. Without both, a few texts that peftly brings are taken.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    if text is not None:
        examples: Sequence[EncodedExample] = _encoded(_lines(text), model, tokenizer)
        source = f"lines of {text}"
    else:
        examples, source = _unasked(model, tokenizer, held_out)
    samples = [_sample(example, model) for example in examples[:MOST] if example.input_ids]
    if not samples:
        raise DataError(f"{text}: there is no text in it that the tokenizer makes a token of")
    return Samples(samples, source)


def _unasked(
    model: Any, tokenizer: "PreTrainedTokenizerBase", held_out: HeldOutExamples | None
) -> tuple[Sequence[EncodedExample], str]:
    """Return held-out examples if they can be had, and else the texts that peftly brings."""
    reason = "the adapter is not in a run folder"
    if held_out is not None:
        try:
            return held_out(model, tokenizer)
        except (ConfigError, DataError, OSError) as error:
            reason = _reason(error)
    return _encoded(_own_texts(), model, tokenizer), f"texts of peftly's own, as {reason}"


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line for line in lines if line]


def _own_texts() -> list[str]:
    folder = files("peftly") / "sample_data" / "complaints"
    (rows,) = read(str(folder / "test.jsonl")).values()
    return [str(row["text"]) for row in rows.rows[:MOST]]


def _encoded(texts: Sequence[str], model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[EncodedExample]:
    """Return texts as the model reads them; an encoder-decoder is to write what it reads."""
    examples = [Example(text) for text in texts]
    if task_of(model) == "causal_lm":
        return [encode_prompt_of(example, tokenizer) for example in examples]
    sources = encode_sources(examples, tokenizer, MOST_TOKENS)
    if task_of(model) != "seq2seq_lm":
        return sources
    answers = answer_ids(texts, tokenizer)
    return [EncodedExample(row.input_ids, row.trained, answer=ids) for row, ids in zip(sources, answers, strict=True)]


def _sample(row: EncodedExample, model: Any) -> Sample:
    import torch

    task = task_of(model)
    if task not in ("causal_lm", "seq2seq_lm"):
        batch = read_by(model, collate([row], pad_id=0))
        return Sample({name: tensor[0].tolist() for name, tensor in batch.items()}, [], [])
    ids = row.input_ids[:MOST_TOKENS]
    inputs = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if task == "causal_lm":
        # A text that is trained as a whole is gone on with from its middle.
        learned = row.trained.index(True) if True in row.trained else 0
        start = learned if 1 < learned <= len(ids) else max(1, len(ids) // 2)
        return Sample(inputs, ids[1:], ids[:start])
    answer = (row.answer or [])[:MOST_TOKENS]
    shifted = model.prepare_decoder_input_ids_from_labels(torch.tensor([answer], device=model.device))
    return Sample({**inputs, "decoder_input_ids": shifted[0].tolist()}, answer, ids)


def _reason(error: Exception) -> str:
    return str(error).partition(";")[0].strip()
