"""Merged models and combined adapters on disk. May import: `evaluation` and below; not `training`, not `exporting`.

merged_model      `save_merged`
merged_folder     its files
merged_card       its model card
parity            comparison before and after merging
parity_samples    texts for this comparison
combine           several adapters made one, in memory
combined_adapter  several adapters made one, on disk
"""

from peftly.merging.combined_adapter import Combined, save_combined
from peftly.merging.merged_model import Into, save_merged
from peftly.merging.parity import Parity

__all__ = ["Combined", "Into", "Parity", "save_combined", "save_merged"]
