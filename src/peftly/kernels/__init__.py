"""Fast kernels: pure functions and autograd functions, without adapter names and settings. May import: `utils`.

low_rank_linear   frozen linear layer and low-rank update as one autograd function
batched_lora      low-rank updates of several adapters as one product
dropout           dropout with masks of one bit per element
cross_entropy     cross-entropy of logits, a chunk at a time
packed_attention  attention over packed examples with a shared prefix
short_attention   attention over few keys, in bf16 on a CPU
lean_blocks       RMSNorm and gated SiLU that save fewer tensors for the backward pass
transforms        when autograd functions give way to plain operations (torch.compile, torch.func, double backward)
quantized         linear layers of bitsandbytes, with weights in 4 or 8 bits
bitsandbytes      import of bitsandbytes that downloads nothing
"""

from peftly.kernels.batched_lora import StackedFactors, stack_factors
from peftly.kernels.bitsandbytes import blocks_of_size, has_bitsandbytes, import_bitsandbytes, without_kernels
from peftly.kernels.cross_entropy import token_cross_entropy
from peftly.kernels.dropout import draw_mask, drop, dropout, keep_probability
from peftly.kernels.lean_blocks import rms_norm, silu_product
from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.kernels.packed_attention import IMPLEMENTATION, Packing, no_mask, supports_packing, use_packed_attention
from peftly.kernels.quantized import (
    dequantized_linear,
    dequantized_weight,
    is_bitsandbytes_layer,
    is_int8,
    is_quantized,
    num_weights,
    quant_state,
)
from peftly.kernels.transforms import is_transformed, plain_gradients

__all__ = [
    "IMPLEMENTATION",
    "Packing",
    "StackedFactors",
    "blocks_of_size",
    "dequantized_linear",
    "dequantized_weight",
    "draw_mask",
    "drop",
    "dropout",
    "has_bitsandbytes",
    "import_bitsandbytes",
    "is_bitsandbytes_layer",
    "is_int8",
    "is_quantized",
    "is_transformed",
    "keep_probability",
    "low_rank_linear",
    "no_mask",
    "num_weights",
    "plain_gradients",
    "quant_state",
    "rms_norm",
    "silu_product",
    "stack_factors",
    "supports_packing",
    "token_cross_entropy",
    "use_packed_attention",
    "without_kernels",
]
