"""Merged models and combined adapters on disk. May import: `evaluation` and below; not `training`, not `exporting`.

merged_model      `save_merged`
merged_folder     the files of a merged model
merged_card       the model card of a merged model
parity            comparison before and after merging
rounding          how much rounding in fp32 is, as measured on the model
parity_samples    inputs for this comparison
combine           combination of several adapters, in memory
combined_adapter  combination of several adapters, on disk
"""

from peftly.merging.combined_adapter import Combined, save_combined
from peftly.merging.merged_model import Into, save_merged
from peftly.merging.parity import Parity

__all__ = ["Combined", "Into", "Parity", "save_combined", "save_merged"]
