"""From rows in files or in memory to batches of token ids. May import: `utils`.

storage        sequences whose elements are made on access, and byte strings on disk
findings       defects of examples, counted by kind
types          `Example` (text) and `EncodedExample` (token ids)
config         `DataConfig`: settings of the data of a run
rows           `Rows`: rows with the location of each row
arrow          rows of Parquet files and of the `datasets` library
hub            data sets of the Hub, with their configuration and split
hub_access     whether the Hub answers, and its caches alone
text_files     lines of text files in UTF-8 or UTF-16
tables         rows of CSV and TSV files
readers        rows of JSON files, folders and the Hub
in_memory      rows of objects in memory
sources        rows of each split, from files or from objects in memory
fields         checked values of a row's fields
optional_parts  parts of a template that are left out where a field has no text
templates      prompt templates, and the space between prompt and completion
tools          tools of conversations, and their calls
messages       conversations in rows
presets        named row formats of tutorials and models
formats        `RowFormat`: rule that turns a row into an example
formatted      examples that are formatted on access
known_formats  table of the row formats that are detected
labels         labels in rows, and their order
inputs         fields that look like texts to read, and templates as they are typed
detect         detection of the row format
usable         rows that cannot be used
vocabulary     special tokens and token positions of a tokenizer
truncation     length of a text that fits, and long texts in pieces
text_findings  special, unknown and lost characters of texts
spoiled_texts  texts that another program has spoiled
chat_template  the chat template of a tokenizer, within limits of time and memory
chat_tokens    the text of a conversation with its tokens
turn_ends      the end of a turn in the text of a chat template
chat_messages  messages in the spelling that a chat template reads
chat_shown     parts of a conversation that a chat template does not show
chat_turns     turns of the assistant in the text of a conversation
chat_sequence  a training sequence with turns of the assistant
chat_truncation  conversations that fit a number of tokens
chat           conversations to token ids; only turns of the assistant are trained
encoded        `EncodedExamples`: encoded examples by the million
encoding       examples to token ids, for causal language models
encoder_inputs texts that an encoder reads to token ids
task_encoding  examples to token ids, for the other tasks
prompt_rows    rows whose targets are to be predicted
prompt_encoding  their prompts to token ids
digests        digests of examples, by which a run finds them again
notes          notes on spaces, rendered chats and long texts
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
from peftly.data.digests import example_digest, pack_digests, unpack_digests
from peftly.data.encoded import EncodedExamples, input_lengths, record_bytes, token_counts
from peftly.data.encoder_inputs import encode_sources, encode_words
from peftly.data.encoding import encode, encode_example_prompt, encode_prompt, label_ids
from peftly.data.fields import is_missing
from peftly.data.findings import FINDING_KINDS, Finding
from peftly.data.formats import RowFormat
from peftly.data.formatted import FormattedExamples
from peftly.data.hub_access import hub_answers, hub_problem
from peftly.data.inputs import read_escapes
from peftly.data.loading import load_data, read_data
from peftly.data.overlaps import prompt_key
from peftly.data.prompt_encoding import encode_conversation, encode_label_prompts, encode_prompts
from peftly.data.prompt_rows import check_prompt_fields, read_prompt_rows, row_prompt, row_target
from peftly.data.readers import read
from peftly.data.report import DataReport, SplitReport, counted
from peftly.data.rows import Rows, check_characters, first_line, quoted
from peftly.data.sources import DataSource, read_rows
from peftly.data.split import Split, encode_split
from peftly.data.splits import Data, FormattedData
from peftly.data.task_encoding import answer_ids, encode_for, label_answers
from peftly.data.templates import Template
from peftly.data.turn_ends import chat_ends
from peftly.data.types import EncodedExample, Example, TaskName
from peftly.data.usable import is_without_target, usable_rows

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
    "chat_ends",
    "check_characters",
    "check_prompt_fields",
    "collate",
    "collate_packed",
    "counted",
    "encode",
    "encode_conversation",
    "encode_example_prompt",
    "encode_for",
    "encode_label_prompts",
    "encode_prompt",
    "encode_prompts",
    "encode_sources",
    "encode_split",
    "encode_words",
    "epoch_order",
    "epoch_steps",
    "example_digest",
    "first_line",
    "hub_answers",
    "hub_problem",
    "input_lengths",
    "is_missing",
    "is_without_target",
    "label_answers",
    "label_ids",
    "load_data",
    "pack_digests",
    "prompt_ids",
    "prompt_key",
    "quoted",
    "read",
    "read_data",
    "read_escapes",
    "read_prompt_rows",
    "read_rows",
    "record_bytes",
    "row_prompt",
    "row_target",
    "token_counts",
    "unpack_digests",
    "usable_rows",
]
