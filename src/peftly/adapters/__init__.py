"""The adapter as a thing: on a model and on disk. May import: `models`, `methods` and what these may import.

attachment  attach, detach
state       the adapters of a model, and the choice of those that are on
merge       adapters merged into the weights of their base, in memory
saving      adapters to disk, in PEFT's format
loading     adapters from disk, alone or with their base
files       the files of an adapter
location    the folder of an adapter, and the base that it requires
card        the model card
version_0_1 files of version 0.1.0
"""

from peftly.adapters.attachment import attach, detach
from peftly.adapters.card import adapter_card
from peftly.adapters.files import (
    CARD,
    CONFIG,
    LABELS,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TOGETHER,
    TRAINING,
    adapters_in,
    class_labels,
    method_config,
    read_notes,
    read_peft_config,
    read_tensors,
)
from peftly.adapters.loading import load, load_adapter, load_together
from peftly.adapters.location import (
    base_requirements,
    called,
    check_weights,
    corrects_quantization,
    find_adapter,
    find_adapters,
    training_quantization,
)
from peftly.adapters.merge import check_mergeable, check_weightable, merge_adapters, weight_adapters
from peftly.adapters.saving import save_adapter
from peftly.adapters.state import (
    AdapterChoice,
    active_adapters,
    attached,
    num_virtual_tokens_of,
    set_adapters,
    trainable_parameters,
    use_adapters,
    use_prompt_positions,
)
from peftly.adapters.version_0_1 import RENAMED_METHOD_SETTINGS, with_current_names

__all__ = [
    "CARD",
    "CONFIG",
    "LABELS",
    "NOTES",
    "QUANTIZATION",
    "RENAMED_METHOD_SETTINGS",
    "TENSORS",
    "TOGETHER",
    "TRAINING",
    "AdapterChoice",
    "active_adapters",
    "adapter_card",
    "adapters_in",
    "attach",
    "attached",
    "base_requirements",
    "called",
    "check_mergeable",
    "check_weightable",
    "check_weights",
    "class_labels",
    "corrects_quantization",
    "detach",
    "find_adapter",
    "find_adapters",
    "load",
    "load_adapter",
    "load_together",
    "merge_adapters",
    "method_config",
    "num_virtual_tokens_of",
    "read_notes",
    "read_peft_config",
    "read_tensors",
    "save_adapter",
    "set_adapters",
    "trainable_parameters",
    "training_quantization",
    "use_adapters",
    "use_prompt_positions",
    "weight_adapters",
    "with_current_names",
]
