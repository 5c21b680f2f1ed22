"""From files to batches of token ids. May import: `utils`.

types          `Example` (text) and `EncodedExample` (token ids)
readers        JSON, CSV, Parquet, folders and the Hub to rows
detect         the row format that the fields of a file suggest
formats        `RowFormat`: how a row becomes an example
templates      prompt templates
messages       conversations as files spell them
chat           conversations through the chat template of a tokenizer
vocabulary     the special tokens and the pieces of a tokenizer
truncation     the longest text that fits
encoding       examples to token ids, for text that is continued
task_encoding  examples to token ids, for the other tasks
splits         training, validation and test examples: `load_data`
collate        encoded examples to batches
overlaps       examples that stand in two splits
report         counts of all that was read, cut and dropped
"""

from peftly.data.chat import prompt_ids
from peftly.data.collate import collate, epoch_order, epoch_steps
from peftly.data.encoding import encode, encode_prompt, encode_prompt_of, label_ids
from peftly.data.formats import RowFormat
from peftly.data.readers import Rows, read
from peftly.data.report import DataReport, SplitReport
from peftly.data.splits import Data, DataConfig, Split, load_data, read_data
from peftly.data.task_encoding import answer_ids, encode_for, encode_sources, encode_words, label_answers
from peftly.data.templates import Template
from peftly.data.types import EncodedExample, Example, TaskName

__all__ = [
    "Data",
    "DataConfig",
    "DataReport",
    "EncodedExample",
    "Example",
    "RowFormat",
    "Rows",
    "Split",
    "SplitReport",
    "TaskName",
    "Template",
    "answer_ids",
    "collate",
    "encode",
    "encode_for",
    "encode_prompt",
    "encode_prompt_of",
    "encode_sources",
    "encode_words",
    "epoch_order",
    "epoch_steps",
    "label_answers",
    "label_ids",
    "load_data",
    "prompt_ids",
    "read",
    "read_data",
]
