"""From files to batches: rows, the shape that makes text of them, tokens, and what was counted on the way."""

from peftly.data.batching import collate, epoch_order, epoch_steps
from peftly.data.encoding import Encoded, encode, encode_prompt, label_ids
from peftly.data.formats import Rows, read
from peftly.data.report import DataReport, SplitReport
from peftly.data.splits import Data, DataConfig, Split, load_data
from peftly.data.templates import Example, Shape, Template

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
    "Template",
    "collate",
    "encode",
    "encode_prompt",
    "epoch_order",
    "epoch_steps",
    "label_ids",
    "load_data",
    "read",
]
