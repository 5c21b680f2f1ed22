"""From files to batches: rows, the shape that makes text of them, tokens, and what was counted on the way."""

from peftly.data.batching import collate, epoch_order, epoch_steps
from peftly.data.encoding import Encoded, encode, encode_prompt, encode_question, label_ids
from peftly.data.formats import Rows, read
from peftly.data.report import DataReport, SplitReport
from peftly.data.shapes import Example, Shape, TaskName
from peftly.data.splits import Data, DataConfig, Split, load_data, read_data
from peftly.data.task_encoding import encode_for
from peftly.data.templates import Template

__all__ = [
    "Data",
    "DataConfig",
    "DataReport",
    "Encoded",
    "Example",
    "Rows",
    "Shape",
    "Split",
    "SplitReport",
    "TaskName",
    "Template",
    "collate",
    "encode",
    "encode_for",
    "encode_prompt",
    "encode_question",
    "epoch_order",
    "epoch_steps",
    "label_ids",
    "load_data",
    "read",
    "read_data",
]
