"""How adapters get into a model that is not ours, and out again. May import: `data`, `kernels`.

targets                 find layers by name or by their part in a block
layers                  adapters of single layers, in place
linear                  size and weight of a linear layer of any class
quantized_layers        quantised layers that compute with our kernels
module_copies           trained copies of modules and biases
selection               which adapters work on which batch element of a call
blocks, stack_hooks     the stacks of transformer blocks, and the hooks on them
virtual_tokens          soft prompts as token ids past the vocabulary
prompt_states           keys and values of a soft prompt, computed once
prefixes, prefix_cache  trained keys and values, through the cache of a stack
insertion               columns that are put into the text of a batch, as plain tensors
cached_calls            calls that continue from a cache with more than text
positions               positions that count tokens, not padding
packing                 examples of a call laid end to end inside a stack
gradient_checkpointing  blocks that are computed again in the backward pass
lean_blocks             frozen blocks that save fewer tensors
modes                   training mode and evaluation mode
caching                 tensors derived from parameters
devices                 device of a module, and weights that are kept elsewhere
"""

from peftly.injection.blocks import blocks_of
from peftly.injection.devices import bias_of, device_of
from peftly.injection.gradient_checkpointing import Checkpointing
from peftly.injection.insertion import select_cached_rows
from peftly.injection.layers import (
    LAYER_ADAPTERS,
    FusedForward,
    LayerAdapter,
    OriginalForward,
    adapted_layers,
    add_layer_adapter,
    override_method,
    owner,
    remove_layer_adapters,
    restore_method,
)
from peftly.injection.lean_blocks import lean_blocks
from peftly.injection.linear import features, fusible_weight, whole_weight
from peftly.injection.modes import checkpointed_blocks, evaluation_mode, training_mode
from peftly.injection.module_copies import (
    BiasCopy,
    add_copies,
    bias_layers,
    copied_modules,
    copied_parameters,
    is_norm,
)
from peftly.injection.packing import packed_token_indices
from peftly.injection.prefixes import Prefix, add_prefix, drop_prefix, key_value_shape, recorded_states
from peftly.injection.quantized_layers import dequantize, make_plain, patch_quantized_layers, restore_quantized_layers
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection, adapters_of_picked
from peftly.injection.stack_hooks import ModelHooks, StackHooks, role_of
from peftly.injection.targets import (
    ALL_LINEAR,
    NEW_PARTS,
    base_modules,
    find_part,
    find_targets,
    is_below,
    names,
    new_parts,
    output_heads,
    own_parts,
    plays,
    short_names,
)
from peftly.injection.virtual_tokens import Position, VirtualTokens, add_virtual_tokens, drop_virtual_tokens

__all__ = [
    "ALL_LINEAR",
    "LAYER_ADAPTERS",
    "NEW_PARTS",
    "ActiveAdapters",
    "AdapterNames",
    "BiasCopy",
    "Checkpointing",
    "FusedForward",
    "LayerAdapter",
    "ModelHooks",
    "OriginalForward",
    "Position",
    "Prefix",
    "Selection",
    "StackHooks",
    "VirtualTokens",
    "adapted_layers",
    "adapters_of_picked",
    "add_copies",
    "add_layer_adapter",
    "add_prefix",
    "add_virtual_tokens",
    "base_modules",
    "bias_layers",
    "bias_of",
    "blocks_of",
    "checkpointed_blocks",
    "copied_modules",
    "copied_parameters",
    "dequantize",
    "device_of",
    "drop_prefix",
    "drop_virtual_tokens",
    "evaluation_mode",
    "features",
    "find_part",
    "find_targets",
    "fusible_weight",
    "is_below",
    "is_norm",
    "key_value_shape",
    "lean_blocks",
    "make_plain",
    "names",
    "new_parts",
    "output_heads",
    "override_method",
    "own_parts",
    "owner",
    "packed_token_indices",
    "patch_quantized_layers",
    "plays",
    "recorded_states",
    "remove_layer_adapters",
    "restore_method",
    "restore_quantized_layers",
    "role_of",
    "select_cached_rows",
    "short_names",
    "training_mode",
    "whole_weight",
]
