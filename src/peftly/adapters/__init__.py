"""Adapters on a model and on disk. May import: `models`, `methods` and the packages that these may import.

attachment  attach, detach
arguments   checks of arguments that people pass who know other tools
state       the adapters of a model, and the choice of the active ones
merge       adapters merged into the weights of their base, in memory
mergeable   whether they can be merged
merge_check comparison of each layer before and after the merge
saving      adapters to disk, in PEFT's format
files       names of the files of an adapter
checksums   checksums of these files
method_settings  settings of the method, from the two files that hold them
tensor_names  names of tensors as other tools write them
folder      `AdapterFolder`: one adapter on disk, parsed once
adapter_set `AdapterSet`: adapters that are opened together, found by a path or a Hub id
fitting     whether the files of an adapter fit a model
loading     adapters from disk, alone or with their base
training_quantization  quantization of the base that an adapter was trained over
allocation  bound of the memory that an adapter on disk may ask for
pretrained  `save_pretrained` and `push_to_hub` of an adapted model, and the checkpoints of Trainer
embeddings  embeddings of a resized vocabulary, in the file of an adapter and in the base
vocabulary  input embedding and output head of a model, and their resize
own_tokenizer  the tokenizer in the folder of an adapter
base_changes  a base made ready for adapters with a tokenizer or new tokens
rollback    restoration of a model after an adapter could not be put on it
card        the model card
parameter_targets  layers that PEFT's configuration names by their weight
peft_limits adapters with which PEFT computes other outputs
version_0_1 names in files of version 0.1.0
"""

from peftly.adapters.adapter_set import (
    AdapterSet,
    AdapterSource,
    adapter_names,
    check_number_of_weights,
    check_source,
    correcting_adapter,
    not_fetched,
    open_adapters,
    open_compatible_adapters,
)
from peftly.adapters.arguments import check_model
from peftly.adapters.attachment import attach, attach_without_values, detach
from peftly.adapters.card import adapter_card
from peftly.adapters.embeddings import embedding_tensors
from peftly.adapters.files import (
    ADAPTER_FILES,
    BASE,
    CARD,
    CONFIG,
    LABELS,
    METHOD,
    PEFT_LIMIT,
    QUANTIZATION,
    ROW_FORMAT,
    TASK,
    TENSORS,
    TOGETHER,
    TOKENIZER,
)
from peftly.adapters.folder import AdapterFolder
from peftly.adapters.loading import load, load_adapter, load_together
from peftly.adapters.merge import check_weightable, merge_adapters, weight_adapters
from peftly.adapters.mergeable import check_mergeable
from peftly.adapters.method_settings import methods_of_peft
from peftly.adapters.own_tokenizer import (
    TOKENIZER_FILES,
    chat_template_in,
    own_tokenizer,
    tokenizer_size,
    tokenizer_to_save,
)
from peftly.adapters.parameter_targets import with_parameter_targets
from peftly.adapters.pretrained import PushAdapters, SaveAdapters, values_of
from peftly.adapters.saving import PEFT_VERSION, adapter_tensors, peft_config_of, save_adapter
from peftly.adapters.state import (
    AdapterChoice,
    active_adapters,
    attached,
    num_virtual_tokens_of,
    parameter_counts,
    set_adapters,
    state_of,
    trainable_parameters,
    use_adapters,
    use_prompt_positions,
)
from peftly.adapters.tensor_names import with_known_names, with_plain_names
from peftly.adapters.version_0_1 import RENAMED_METHOD_SETTINGS, with_current_names

__all__ = [
    "ADAPTER_FILES",
    "BASE",
    "CARD",
    "CONFIG",
    "LABELS",
    "METHOD",
    "PEFT_LIMIT",
    "PEFT_VERSION",
    "QUANTIZATION",
    "RENAMED_METHOD_SETTINGS",
    "ROW_FORMAT",
    "TASK",
    "TENSORS",
    "TOGETHER",
    "TOKENIZER",
    "TOKENIZER_FILES",
    "AdapterChoice",
    "AdapterFolder",
    "AdapterSet",
    "AdapterSource",
    "PushAdapters",
    "SaveAdapters",
    "active_adapters",
    "adapter_card",
    "adapter_names",
    "adapter_tensors",
    "attach",
    "attach_without_values",
    "attached",
    "chat_template_in",
    "check_mergeable",
    "check_model",
    "check_number_of_weights",
    "check_source",
    "check_weightable",
    "correcting_adapter",
    "detach",
    "embedding_tensors",
    "load",
    "load_adapter",
    "load_together",
    "merge_adapters",
    "methods_of_peft",
    "not_fetched",
    "num_virtual_tokens_of",
    "open_adapters",
    "open_compatible_adapters",
    "own_tokenizer",
    "parameter_counts",
    "peft_config_of",
    "save_adapter",
    "set_adapters",
    "state_of",
    "tokenizer_size",
    "tokenizer_to_save",
    "trainable_parameters",
    "use_adapters",
    "use_prompt_positions",
    "values_of",
    "weight_adapters",
    "with_current_names",
    "with_known_names",
    "with_parameter_targets",
    "with_plain_names",
]
