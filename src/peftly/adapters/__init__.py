"""The adapter as a thing: on a model and on disk. May import: `models`, `methods` and what these may import.

attachment  attach, detach
state       the adapters of a model, and the choice of those that are on
merge       adapters merged into the weights of their base, in memory
saving      adapters to disk, in PEFT's format
loading     adapters from disk, alone or with their base
files       the files of an adapter
location    the folder of an adapter, and the base that it requires
card        the model card
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
    called,
    check_weights,
    find_adapter,
    find_together,
    home_of,
    makes_up_for_quantization,
    trained_over,
)
from peftly.adapters.merge import check_foldable, check_sums, fold, weigh
from peftly.adapters.saving import save_adapter
from peftly.adapters.state import (
    RowChoice,
    attached,
    on_all_rows,
    set_adapters,
    trainable_parameters,
    use_adapters,
    use_places,
    virtual_count,
)

__all__ = [
    "CARD",
    "CONFIG",
    "LABELS",
    "NOTES",
    "QUANTIZATION",
    "TENSORS",
    "TOGETHER",
    "TRAINING",
    "RowChoice",
    "adapter_card",
    "adapters_in",
    "attach",
    "attached",
    "called",
    "check_foldable",
    "check_sums",
    "check_weights",
    "class_labels",
    "detach",
    "find_adapter",
    "find_together",
    "fold",
    "home_of",
    "load",
    "load_adapter",
    "load_together",
    "makes_up_for_quantization",
    "method_config",
    "on_all_rows",
    "read_notes",
    "read_peft_config",
    "read_tensors",
    "save_adapter",
    "set_adapters",
    "trainable_parameters",
    "trained_over",
    "use_adapters",
    "use_places",
    "virtual_count",
    "weigh",
]
