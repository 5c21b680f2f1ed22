"""`Split`: examples of one split, as text and as token ids, and their encoding in batches."""

from __future__ import annotations

import gc
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peftly.data.checks import DROP_KINDS, EncodingChecks, count_outliers, drop_reason
from peftly.data.config import LongTexts
from peftly.data.encoded import EncodedExamples
from peftly.data.findings import FindingCounter
from peftly.data.formatted import FormattedExamples
from peftly.data.report import LengthReport, LossUnit, SplitReport, counted
from peftly.data.spoiled_texts import spoiled_texts
from peftly.data.task_encoding import encode_for
from peftly.data.truncation import cut_into_pieces
from peftly.data.types import UNTRAINED, EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Split", "encode_split"]

_BATCH_EXAMPLES = 1024
_BATCH_CHARACTERS = 2**21
"""Examples, and characters, that are tokenized at once."""

_NO_MAXIMUM = 2**62
"""Number of tokens that no text has."""

_UNITS: dict[TaskName, LossUnit] = {"sequence_classification": "row", "token_classification": "tag"}


@dataclass(frozen=True)
class Split:
    """Examples of one split with their token ids. Dropped rows are in neither sequence.

    Attributes:
        examples: the examples as text. Those of `load_data` are made from the stored rows on access. A text that was
            cut into pieces is here once for each piece.
        encoded: the examples as token ids, in the same order. Those of `load_data` are read from memory or from a
            temporary file on access.
        adapters: adapters of each example, as for `use_adapters`; None: the active adapters for all examples.
    """

    examples: Sequence[Example]
    encoded: Sequence[EncodedExample]
    adapters: Sequence[str | Sequence[str] | None] | None = None


def encode_split(
    examples: FormattedExamples,
    task: TaskName,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    counter: FindingCounter | None = None,
    *,
    long_texts: LongTexts = "cut",
) -> tuple[Split, SplitReport]:
    """Encode the examples of a split.

    Args:
        examples: the examples as text.
        task: task of the model.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens of an example.
        counter: findings of the split so far, to which those of the encoding are added; None: there are none.
        long_texts: treatment of plain texts that are longer; see `DataConfig`.

    Returns:
        The split without the dropped rows, and the counts.

    Raises:
        DataError: no trained token is left in any row, or the tokenizer does not support the task.
    """
    encoded = EncodedExamples()
    kept, num_messages, lengths = array("q"), array("q"), array("i")
    labels: Counter[str] = Counter()
    truncated = tokens_cut = trained_tokens = dropped = first_dropped = texts_in_pieces = pieces = 0
    counter = FindingCounter() if counter is None else counter
    kind = examples.row_format.kind
    defects_of = EncodingChecks(task, tokenizer, kind)
    encode = _encoder(examples, task, tokenizer, max_length, long_texts)
    with closing(_encoded_batches(examples, encode, in_thread=kind != "chat")) as batches:
        for start, batch, results in batches:
            for index, (example, result) in enumerate(zip(batch, results, strict=True), start=start):
                num_targets = 0 if result is None else result.num_targets
                for finding, detail in _findings(example, result, task, defects_of if num_targets else None):
                    counter.add(finding, index, detail)
                if result is None or not num_targets:
                    first_dropped = first_dropped if dropped else index
                    dropped += 1
                    continue
                if kind == "text" and result.others:
                    texts_in_pieces += 1
                    pieces += 1 + len(result.others)
                if example.label is not None:
                    labels[example.label] += 1
                names = examples.row_format.labels
                labels.update(names[tag] for tag in result.tags or () if tag != UNTRAINED)
                for sequence in (result, *result.others):
                    kept.append(index)
                    num_messages.append(sequence.num_messages)
                    encoded.append(sequence)
                    lengths.append(sequence.num_tokens + sequence.num_truncated)
                    truncated += sequence.num_truncated > 0
                    tokens_cut += sequence.num_truncated
                trained_tokens += num_targets + sum(sequence.num_targets for sequence in result.others)
    num_rows = len(examples)
    if not encoded:
        findings = counter.findings(examples.location, DROP_KINDS) or counter.findings(examples.location)
        reasons = "; ".join(finding.line() for finding in findings)
        raise DataError(
            f"{examples.rows.name}: no trained token is left in any of {counted(num_rows, 'row')} at "
            f"max_length={max_length}: {reasons}"
        )
    count_outliers(lengths, kept, max_length, counter)
    report = SplitReport(
        source=examples.rows.name,
        rows=num_rows,
        examples=len(encoded),
        truncated=truncated,
        tokens_cut=tokens_cut,
        dropped=dropped,
        first_dropped=examples.location(first_dropped) if dropped else None,
        tokens=sum(encoded.num_tokens),
        trained_tokens=trained_tokens,
        labels={label: labels[label] for label in examples.row_format.labels if labels[label]},
        unit=_UNITS.get(task, "token"),
        findings=counter.findings(examples.location),
        lengths=LengthReport.of(lengths, None if task == "seq2seq_lm" else max_length),
        texts_in_pieces=texts_in_pieces,
        pieces=pieces,
        hub=examples.rows.hub,
    )
    if kind == "chat":
        return Split(examples.select(kept, num_messages), encoded), report
    return Split(examples.select(kept) if dropped or pieces else examples, encoded), report


def _encoder(
    examples: FormattedExamples,
    task: TaskName,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    long_texts: LongTexts,
) -> Callable[[int, list[Example]], list[EncodedExample | None]]:
    """Return the function that encodes consecutive examples, from the index of the first one."""
    in_pieces = long_texts == "pieces" and examples.row_format.kind == "text"
    front = Vocabulary.of(tokenizer).front if in_pieces else []

    def encode(start: int, batch: list[Example]) -> list[EncodedExample | None]:
        encodings = encode_for(
            task,
            batch,
            tokenizer,
            examples.row_format,
            _NO_MAXIMUM if in_pieces else max_length,
            location=lambda index: examples.location(start + index),
        )
        if in_pieces:
            return [None if whole is None else _in_pieces(whole, front, max_length) for whole in encodings]
        return encodings

    return encode


def _in_pieces(whole: EncodedExample, front: Sequence[int], max_length: int) -> EncodedExample:
    """Return the first piece of a long text, with the `others`."""
    first, *others = cut_into_pieces(whole, front, max_length)
    return replace(first, others=tuple(others)) if others else first


def _findings(
    example: Example, result: EncodedExample | None, task: TaskName, defects_of: EncodingChecks | None
) -> Iterable[tuple[str, str]]:
    """Return kind and detail of the findings of an example, each kind once; `defects_of` is None for a dropped row."""
    found = [*example.findings, *spoiled_texts(example)]
    if result is not None and defects_of is not None and not (found or result.findings or result.others):
        return defects_of(result)
    if result is not None:
        found += result.findings
        if defects_of is not None:
            found += defects_of(result)
            for other in result.others:
                found += defects_of(other)
    if defects_of is None:
        reason, detail = drop_reason(example, task)
        if reason == "empty_answer":
            found = [finding for finding in found if finding[0] != "empty_turns"]
        if reason != "no_room" or not found:
            found.append((reason, detail))
    return dict(reversed(found)).items() if found else ()


def _encoded_batches(
    examples: Sequence[Example],
    encode: Callable[[int, list[Example]], list[EncodedExample | None]],
    *,
    in_thread: bool,
) -> Generator[tuple[int, list[Example], list[EncodedExample | None]], None, None]:
    """Yield the index of the first of some consecutive examples, these examples, and their encodings.

    A thread encodes the next examples, on all cores, while the caller works with the last ones.

    Args:
        examples: the examples.
        encode: function that returns the encodings, from the index of the first example and the examples.
        in_thread: whether to use the thread. The time of a chat template can be limited in the main thread only.
    """
    if not in_thread:
        for start, batch in _batches(examples):
            yield start, batch, encode(start, batch)
        return
    waiting: deque[tuple[int, list[Example], Future[list[EncodedExample | None]]]] = deque()
    # One batch is not worth the count of the frozen objects, which are a million on the command line.
    collections = _no_garbage_collection() if len(examples) > _BATCH_EXAMPLES else nullcontext()
    with ThreadPoolExecutor(1) as thread, collections:
        for start, batch in _batches(examples):
            waiting.append((start, batch, thread.submit(encode, start, batch)))
            if len(waiting) > 1:
                first, done, results = waiting.popleft()
                yield first, done, results.result()
        for first, done, results in waiting:
            yield first, done, results.result()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Except all present objects from the search for unreachable objects, which the many lists of a batch start."""
    is_frozen = gc.get_freeze_count() > 0
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()


def _batches(examples: Sequence[Example]) -> Iterator[tuple[int, list[Example]]]:
    """Yield consecutive examples, and the index of the first of them."""
    start, batch, characters = 0, list[Example](), 0
    for end, example in enumerate(examples, start=1):
        batch.append(example)
        characters += len(example.prompt) + len(example.completion)
        if len(batch) == _BATCH_EXAMPLES or characters > _BATCH_CHARACTERS or end == len(examples):
            yield start, batch
            start, batch, characters = end, [], 0
