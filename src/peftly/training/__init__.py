"""The training loop, for every method and task. May import: `evaluation` and what it may import.

train          `train` and `train_together`
session        one training, from its first step or a checkpoint to its end
config         settings
checks         checks of the settings against the data and the model
loop           steps, evaluations and checkpoints, in order
job            one adapter under training
range_test     search for a learning rate
run_state      progress of a job
run_log        records of a job, and its callbacks
steps          examples of each step, and their micro-batches
processes      processes of a launch
sharding       base that is sharded over the processes
micro_batches  number of tokens that go through the model at once
losses         losses of a micro-batch
gradients      gradients of a step
loss_scale     loss scaling in fp16
frozen_layers  cache of the outputs of frozen lower layers
memory         largest memory during a training
optimizer      optimizers and their parameter groups
schedule       length of a training, and learning rate schedules
best           the best evaluation, and records of evaluations
saved          folders of saved adapters
finite_weights copies of the weights, to go back to
checkpoint     files from which a stopped run continues
callbacks      records of a run, and the progress bar
trackers       kinds of trackers of experiments
tracking       records of a run for its trackers
metrics        metrics.jsonl
"""

from peftly.training.best import best_line
from peftly.training.callbacks import Callback, ProgressBar, StepRecord, TrainResult
from peftly.training.checkpoint import checkpoint_files
from peftly.training.checks import check_trainable
from peftly.training.config import TrainConfig
from peftly.training.frozen_layers import frozen_layers, stored_bytes
from peftly.training.micro_batches import fast_tokens, free_bytes, memory_of_device
from peftly.training.processes import (
    is_first_report,
    join_processes,
    leave_processes,
    lost_process,
    num_processes,
    on_main_process,
)
from peftly.training.range_test import LearningRateTest, find_learning_rate
from peftly.training.schedule import num_epochs
from peftly.training.sharding import computed_with
from peftly.training.trackers import check_trackers
from peftly.training.tracking import TRACKERS, Tracking
from peftly.training.train import Job, packs_examples, train, train_together

__all__ = [
    "TRACKERS",
    "Callback",
    "Job",
    "LearningRateTest",
    "ProgressBar",
    "StepRecord",
    "Tracking",
    "TrainConfig",
    "TrainResult",
    "best_line",
    "check_trackers",
    "check_trainable",
    "checkpoint_files",
    "computed_with",
    "fast_tokens",
    "find_learning_rate",
    "free_bytes",
    "frozen_layers",
    "is_first_report",
    "join_processes",
    "leave_processes",
    "lost_process",
    "memory_of_device",
    "num_epochs",
    "num_processes",
    "on_main_process",
    "packs_examples",
    "stored_bytes",
    "train",
    "train_together",
]
