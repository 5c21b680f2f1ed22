"""Sample texts that a model is compared on before and after merging, as the model reads them."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data import Encoded, Example, Shape, collate
from peftly.data.encoding import encode_question
from peftly.data.task_encoding import answer_ids, encode_sources
from peftly.errors import ConfigError, DataError
from peftly.objective import read_by
from peftly.tasks import task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Sample", "Samples", "samples_for"]

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


def samples_for(adapter: str | Path, model: Any, tokenizer: "PreTrainedTokenizerBase", text: Path | None) -> Samples:
    """Return texts to compare a model on.

    Args:
        adapter: if it is in a run folder whose data are there, the run's held-out rows are taken.
        model: the adapted model.
        tokenizer: its own.
        text: instead, a file with a text in each line. Without either, a few texts of peftly's own are taken.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    if text is not None:
        rows, source = _encoded(_lines(text), model, tokenizer), f"lines of {text}"
    else:
        try:
            rows, source = _held_out(adapter, model, tokenizer)
        except (ConfigError, DataError, OSError) as error:
            rows, source = _encoded(_own_texts(), model, tokenizer), f"texts of peftly's own, as {_reason(error)}"
    samples = [_sample(row, model) for row in rows[:MOST] if row.input_ids]
    if not samples:
        raise DataError(f"{text}: there is no text in it that the tokenizer makes a token of")
    return Samples(samples, source)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line for line in lines if line]


def _own_texts() -> list[str]:
    from peftly.data.formats import read

    folder = files("peftly") / "sample_data" / "complaints"
    (rows,) = read(str(folder / "test.jsonl")).values()
    return [str(row["text"]) for row in rows.rows[:MOST]]


def _held_out(adapter: str | Path, model: Any, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[Encoded], str]:
    """Return the held-out rows of the run that the adapter is of."""
    from peftly.adapter_files import read_notes
    from peftly.adapter_home import find_adapter
    from peftly.config import one_run
    from peftly.held_out import held_out_rows
    from peftly.run_folder import OpenRun, read_config

    found = read_config(Path(adapter))
    if found is None:
        raise ConfigError("the adapter is not in a run folder")
    noted = read_notes(find_adapter(adapter)).get("shape")
    shape = Shape.from_dict(noted) if noted else None
    rows = held_out_rows(OpenRun(model, tokenizer, shape, one_run(found, adapter)), None)
    return rows.split.encoded, f"{rows.name} rows of the run"


def _encoded(texts: Sequence[str], model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[Encoded]:
    """Return texts as the model reads them; an encoder-decoder is to write what it reads."""
    examples = [Example(text) for text in texts]
    if task_of(model) == "causal_lm":
        return [encode_question(example, tokenizer) for example in examples]
    sources = encode_sources(examples, tokenizer, MOST_TOKENS)
    if task_of(model) != "seq2seq_lm":
        return sources
    answers = answer_ids(texts, tokenizer)
    return [Encoded(row.input_ids, row.trained, answer=ids) for row, ids in zip(sources, answers, strict=True)]


def _sample(row: Encoded, model: Any) -> Sample:
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
