"""The one training loop. May import: `evaluation` and what it may import; neither `merging` nor `exporting`.

train          `train` and `train_together`
config         settings
checks         settings that the data or the model cannot serve
loop           steps, evaluations and checkpoints, in order
job            one adapter under training
run_state      progress of a job
steps          the examples of each step
micro_batches  how many tokens go through the model at once
gradients      gradients of a step
loss_scale     loss scaling in fp16
frozen_layers  outputs of frozen lower layers, computed once
optimizer      optimizers and learning rate schedules
checkpoint     one file from which a stopped run continues
callbacks      metrics.jsonl and the progress bar
"""

from peftly.training.callbacks import Callback, ProgressBar, TrainResult
from peftly.training.checkpoint import CHECKPOINT
from peftly.training.checks import check_trainable
from peftly.training.config import TrainConfig
from peftly.training.frozen_layers import frozen_layers
from peftly.training.train import Job, lays_end_to_end, train, train_together

__all__ = [
    "CHECKPOINT",
    "Callback",
    "Job",
    "ProgressBar",
    "TrainConfig",
    "TrainResult",
    "check_trainable",
    "frozen_layers",
    "lays_end_to_end",
    "train",
    "train_together",
]
