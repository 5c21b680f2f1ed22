"""From rows in files or in memory to batches of token ids. May import: `utils`.

storage        sequences whose elements are made on access, and byte strings on disk
findings       defects of examples, counted by kind
types          `Example` (text) and `EncodedExample` (token ids)
config         `DataConfig`: settings of the data of a run
rows           `Rows`: rows with the location of each row
arrow          rows of Parquet files and of the `datasets` library
readers        rows of JSON and CSV files, folders and the Hub
sources        rows of each split, from files or from objects in memory
fields         checked values of a row's fields
templates      prompt templates, and the space between prompt and completion
messages       conversations in rows
formats        `RowFormat`: rule that turns a row into an example
formatted      examples that are formatted on access
detect         detection of the row format
vocabulary     special tokens and token positions of a tokenizer
truncation     search for the longest text that fits
chat_template  the chat template of a tokenizer, within limits of time and memory
chat_tokens    the text of a conversation with its tokens
chat           conversations to token ids; only turns of the assistant are trained
encoded        `EncodedExamples`: encoded examples by the million
encoding       examples to token ids, for causal language models
task_encoding  examples to token ids, for the other tasks
overlaps       search for examples that repeat or contradict others, in one split or two
checks         checks of encoded examples, of labels, and of dropped rows
validation     choice of validation examples from the training examples
report         counts of rows, tokens, lengths and defects
split          `Split`: examples of one split, and their encoding in batches
splits         `Data`: training, validation and test examples
loading        `load_data`: from any source to `Data`
collate        encoded examples to batches
"""

from peftly.data.chat import prompt_ids
from peftly.data.collate import collate, collate_packed, epoch_order, epoch_steps
from peftly.data.config import DataConfig
from peftly.data.detect import TargetKind
from peftly.data.encoded import EncodedExamples, input_lengths, record_bytes, token_counts
from peftly.data.encoding import encode, encode_example_prompt, encode_prompt, label_ids
from peftly.data.findings import FINDING_KINDS, Finding
from peftly.data.formats import RowFormat
from peftly.data.formatted import FormattedExamples
from peftly.data.loading import load_data, read_data
from peftly.data.readers import read
from peftly.data.report import DataReport, SplitReport, counted
from peftly.data.rows import Rows, check_characters
from peftly.data.sources import DataSource
from peftly.data.split import Split, encode_split
from peftly.data.splits import Data, FormattedData
from peftly.data.task_encoding import answer_ids, encode_for, encode_sources, encode_words, label_answers
from peftly.data.templates import Template
from peftly.data.types import EncodedExample, Example, TaskName

__all__ = [
    "FINDING_KINDS",
    "Data",
    "DataConfig",
    "DataReport",
    "DataSource",
    "EncodedExample",
    "EncodedExamples",
    "Example",
    "Finding",
    "FormattedData",
    "FormattedExamples",
    "RowFormat",
    "Rows",
    "Split",
    "SplitReport",
    "TargetKind",
    "TaskName",
    "Template",
    "answer_ids",
    "check_characters",
    "collate",
    "collate_packed",
    "counted",
    "encode",
    "encode_example_prompt",
    "encode_for",
    "encode_prompt",
    "encode_sources",
    "encode_split",
    "encode_words",
    "epoch_order",
    "epoch_steps",
    "input_lengths",
    "label_answers",
    "label_ids",
    "load_data",
    "prompt_ids",
    "read",
    "read_data",
    "record_bytes",
    "token_counts",
]
