"""Fast arithmetic: pure functions and autograd functions. No adapter names, no settings. May import: `utils`.

low_rank_linear   frozen linear layer plus low-rank update as one autograd function
batched_lora      low-rank updates of several adapters in one product
dropout           dropout with masks of one bit for each element
cross_entropy     loss of a few rows of logits at a time
packed_attention  attention over packed examples with a shared beginning
short_attention   attention over few keys in bf16 on a CPU
lean_blocks       RMSNorm and SiLU product that save fewer tensors
quantized         linear layers with weights in 4 or 8 bits
bitsandbytes      import of bitsandbytes without downloads
"""

from peftly.kernels.batched_lora import StackedFactors, stack_factors
from peftly.kernels.bitsandbytes import blocks_of_size, has_bitsandbytes, import_bitsandbytes, without_kernels
from peftly.kernels.cross_entropy import row_losses
from peftly.kernels.dropout import draw_mask, drop, dropout, keep_probability
from peftly.kernels.lean_blocks import rms_norm, silu_product
from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.kernels.packed_attention import IMPLEMENTATION, Packing, no_mask, packed, packs
from peftly.kernels.quantized import (
    has_8_bits,
    is_bitsandbytes_layer,
    is_quantized,
    quant_state,
    unpacked,
    unpacked_linear,
)

__all__ = [
    "IMPLEMENTATION",
    "Packing",
    "StackedFactors",
    "blocks_of_size",
    "draw_mask",
    "drop",
    "dropout",
    "has_8_bits",
    "has_bitsandbytes",
    "import_bitsandbytes",
    "is_bitsandbytes_layer",
    "is_quantized",
    "keep_probability",
    "low_rank_linear",
    "no_mask",
    "packed",
    "packs",
    "quant_state",
    "rms_norm",
    "row_losses",
    "silu_product",
    "stack_factors",
    "unpacked",
    "unpacked_linear",
    "without_kernels",
]
