"""Insertion of adapters into a model from outside, and their removal. May import: `data`, `kernels`.

targets                 find layers by name or by their part in a block
heads                   head of a model outside its body
patterns                regular expressions in settings, with a time limit
accelerate_hooks        adapters inside the hooks of accelerate
nested_tensors          tensors inside tuples, lists and dictionaries
adapted_forward         forward of an adapted layer, which runs its adapters
layers                  adapters of single layers, in place
overrides               methods of one model that are replaced
linear                  size and weight of a linear layer of any class
quantized_layers        quantised layers that compute with our kernels
weight_uses             submodules whose weights a class reads instead of calling them
merged_parameters       parameters of adapted layers with the adapters merged
weight_readers          modules that read the weights of adapted layers
reach                   check of whether changed layers reach the output
fused_heads             refusal of calls that do not call an adapted output head
module_copies           trained copies of modules and biases
selection               active adapters of each batch element of a call
blocks                  blocks of a stack of transformer layers
stack_hooks             hooks on the stacks of a model
stack_calls             state of a call of a stack
text_stacks             stacks that read and write text, and the direction in which they attend
virtual_tokens          soft prompts as token ids past the vocabulary
virtual_token_calls     calls of a stack with virtual tokens
prompt_states           keys and values of a soft prompt, computed once
prefixes                trained keys and values of every layer
prefix_calls            calls of a stack with prefixes
prefix_cache            caches that insert a prefix
insertion               columns that are inserted into the text of a batch, as plain tensors
cached_calls            calls that continue from a cache with inserted columns
positions               positions that count tokens, not padding
packing                 examples of a call laid end to end inside a stack
gradient_checkpointing  blocks that are recomputed in the backward pass
lean_blocks             frozen blocks that save fewer tensors
lean_classes            classes of transformers for which lean_blocks has a forward
modes                   training mode and evaluation mode
caching                 cache of tensors derived from the weights of adapters
devices                 device of a module, and weights that are on another one
"""

from peftly.injection.adapted_forward import FusedForward, OriginalForward
from peftly.injection.blocks import blocks_of
from peftly.injection.caching import cache_adapter_tensors, invalidate_cached_tensors
from peftly.injection.devices import bias_of, device_of
from peftly.injection.fused_heads import refuse_fused_head
from peftly.injection.gradient_checkpointing import Checkpointing
from peftly.injection.heads import body_of, is_body, output_heads, parts_without, vocabulary_head
from peftly.injection.insertion import reorder_cache_insertions
from peftly.injection.layers import (
    LAYER_ADAPTERS,
    LayerAdapter,
    adapted_layers,
    add_layer_adapter,
    base_modules,
    original_forward,
    owner,
    remove_layer_adapters,
)
from peftly.injection.lean_blocks import lean_blocks
from peftly.injection.linear import features, fusible_weight, is_foreign, whole_weight
from peftly.injection.modes import checkpointed_blocks, evaluation_mode, training_mode
from peftly.injection.module_copies import (
    BiasCopy,
    ModuleCopy,
    add_copies,
    bias_layers,
    copied_buffers,
    copied_modules,
    copied_parameters,
    norm_layers,
    tied_copies,
    untie_copies,
)
from peftly.injection.overrides import override_method, restore_method
from peftly.injection.packing import current_packing, packed_call
from peftly.injection.patterns import by_pattern, first_matches
from peftly.injection.prefix_calls import check_placement
from peftly.injection.prefixes import Prefix, add_prefix, drop_prefix, key_value_shape, recorded_states
from peftly.injection.quantized_layers import (
    QUANTIZATION,
    dequantize,
    make_plain,
    patch_quantized_layers,
    quantization_settings,
    restore_quantized_layers,
)
from peftly.injection.reach import ReachCheck, layers_without_gradient, peft_layer, some_paths
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection, use_adapters_of_elements
from peftly.injection.stack_hooks import ModelHooks, StackHooks
from peftly.injection.targets import (
    ALL_LINEAR,
    NEW_PARAMETERS,
    NEW_PARAMETERS_SEED,
    find_part,
    find_targets,
    is_part,
    is_within,
    matches_path,
    new_modules,
    short_names,
    task_modules,
)
from peftly.injection.text_stacks import (
    calls_blocks_of,
    embedding_in,
    family_of,
    inserts_no_tokens,
    is_multimodal,
    role_of,
    text_stack,
)
from peftly.injection.virtual_tokens import (
    Position,
    VirtualTokens,
    add_virtual_tokens,
    drop_virtual_tokens,
    virtual_token_ids,
)
from peftly.injection.weight_readers import layers_read, remove_weight_readers, serve_weight_readers
from peftly.injection.weight_uses import is_callable, paths_used

__all__ = [
    "ALL_LINEAR",
    "LAYER_ADAPTERS",
    "NEW_PARAMETERS",
    "NEW_PARAMETERS_SEED",
    "QUANTIZATION",
    "ActiveAdapters",
    "AdapterNames",
    "BiasCopy",
    "Checkpointing",
    "FusedForward",
    "LayerAdapter",
    "ModelHooks",
    "ModuleCopy",
    "OriginalForward",
    "Position",
    "Prefix",
    "ReachCheck",
    "Selection",
    "StackHooks",
    "VirtualTokens",
    "adapted_layers",
    "add_copies",
    "add_layer_adapter",
    "add_prefix",
    "add_virtual_tokens",
    "base_modules",
    "bias_layers",
    "bias_of",
    "blocks_of",
    "body_of",
    "by_pattern",
    "cache_adapter_tensors",
    "calls_blocks_of",
    "check_placement",
    "checkpointed_blocks",
    "copied_buffers",
    "copied_modules",
    "copied_parameters",
    "current_packing",
    "dequantize",
    "device_of",
    "drop_prefix",
    "drop_virtual_tokens",
    "embedding_in",
    "evaluation_mode",
    "family_of",
    "features",
    "find_part",
    "find_targets",
    "first_matches",
    "fusible_weight",
    "inserts_no_tokens",
    "invalidate_cached_tensors",
    "is_body",
    "is_callable",
    "is_foreign",
    "is_multimodal",
    "is_part",
    "is_within",
    "key_value_shape",
    "layers_read",
    "layers_without_gradient",
    "lean_blocks",
    "make_plain",
    "matches_path",
    "new_modules",
    "norm_layers",
    "original_forward",
    "output_heads",
    "override_method",
    "owner",
    "packed_call",
    "parts_without",
    "patch_quantized_layers",
    "paths_used",
    "peft_layer",
    "quantization_settings",
    "recorded_states",
    "refuse_fused_head",
    "remove_layer_adapters",
    "remove_weight_readers",
    "reorder_cache_insertions",
    "restore_method",
    "restore_quantized_layers",
    "role_of",
    "serve_weight_readers",
    "short_names",
    "some_paths",
    "task_modules",
    "text_stack",
    "tied_copies",
    "training_mode",
    "untie_copies",
    "use_adapters_of_elements",
    "virtual_token_ids",
    "vocabulary_head",
    "whole_weight",
]
