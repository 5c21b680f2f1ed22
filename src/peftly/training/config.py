"""The settings of a training run, checked without importing torch."""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from peftly.settings import Seed, Settings

__all__ = ["TrainConfig"]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab", "csv"]
_NoTracker = Literal["none"] | None


def _read_trackers(value: object) -> object:
    """Convert the name of a tracker, none, or a list of names into a tuple."""
    names = [] if value in (None, "none") else [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(name in get_args(Tracker) for name in names):
        raise ValueError(f"give none, one of {', '.join(get_args(Tracker))}, or a list of these")
    return tuple(dict.fromkeys(names))


_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
}
"""Optimizers of other tools: their names here."""


def _known_optimizer(value: object) -> object:
    if isinstance(value, str) and value in _OPTIMIZERS:
        raise ValueError(f"write {_OPTIMIZERS[value]} for {value}")
    return value


def _no_limit(value: object) -> object:
    """Refuse -1, which is no limit in other tools, with advice."""
    if value == -1:
        raise ValueError("leave it out for a training without this limit")
    return value


Schedule = Literal["linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "inverse_sqrt"]


class TrainConfig(Settings):
    """Settings of training, evaluation and checkpoints.

    A step is one update of the trained weights: `batch_size` x `gradient_accumulation_steps` examples on every process.
    """

    section: ClassVar[str] = "train"

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training examples. None: 5; for heads of classifiers as many as make 2,000 examples, at least 5
    and at most 15."""

    max_steps: Annotated[int | None, BeforeValidator(_no_limit)] = Field(default=None, ge=1)
    """Number of steps; it replaces `epochs`. None: `epochs` decides."""

    batch_size: int = Field(default=8, ge=1)
    """Examples of a batch, on each process."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches of a step; the gradient is that of one large batch with the mean over all its tokens."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the model at once, on each process; None: as many as are fast and fit into memory. The
    number does not change the result of a step; a longer example goes through the model alone."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Highest learning rate; None: the default of the method."""

    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"],
        BeforeValidator(_known_optimizer),
    ] = "adamw"
    """Optimizer. `8bit` stores AdamW's moments in 8 bits, and `paged` moves them to the CPU's memory when the GPU's is
    full; both need bitsandbytes, and are plain AdamW without it."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, decoupled from the gradient; for sgd it is added to the gradient."""

    lr_scheduler_type: Schedule = "linear"
    """Learning rate schedule after the warm-up, by its name in transformers. The last step has a rate above 0."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises to its peak: step k of w has k/w of it."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Number of steps in which the learning rate rises to its peak; None: by `warmup_ratio`."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Norm to which larger gradients are clipped; None: no clipping."""

    seed: Seed = 0
    """Seed of the order of the examples and of dropout."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the validation examples; None: one epoch. The last step is always evaluated."""

    evaluation_batch_size: int = Field(default=32, ge=1)
    """Examples that go through the model at once in an evaluation."""

    generation_examples: int = Field(default=16, ge=0)
    """Held-out examples without labels whose answers are generated after the training and compared with the expected
    ones; 0: none."""

    save_steps: int | None = Field(default=None, ge=1)
    """Steps between saved adapters, each in a folder `step-N`; None: only the best adapter is saved."""

    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, from which a stopped run continues (`--resume`); None: one every ten minutes."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints that stay in the run folder. A stopped run continues from the newest undamaged one."""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Evaluations without a better score, or an equal one with a lower loss, after which training stops; None: it does
    not stop early."""

    early_stopping_threshold: float = Field(default=0.0, ge=0)
    """Amount by which a score must be better than the best one so far to count for `early_stopping_patience`."""

    metric_for_best_model: Literal["auto", "loss", "accuracy", "macro_f1", "entity_f1"] = "auto"
    """Score that decides which evaluation is the best; of equal accuracies or F1 scores it is the last one. `auto`:
    accuracy for examples with labels, F1 of entities (or macro-F1) for tags, else the loss."""

    report_to: Annotated[
        tuple[str, ...], BeforeValidator(_read_trackers, json_schema_input_type=Tracker | list[Tracker] | _NoTracker)
    ] = ()
    """Trackers that get the records of the run: none, one of tensorboard, wandb, mlflow, trackio, swanlab and csv, or a
    list of these. They work offline unless their own environment variables say otherwise."""

    gradient_checkpointing: bool | None = None
    """Compute every block again in the backward pass instead of storing its activations: about a third slower, for a
    fraction of the memory. None: only if one example alone takes too much memory otherwise."""

    frozen_layers_once: bool = True
    """Compute the outputs of the layers below all trained ones once for each example, and read them in later epochs,
    where the base allows it. They are stored in memory, or in a temporary file if they take more than 1 GiB."""

    fsdp: bool = False
    """Shard the frozen base over the processes (FSDP2), so that each holds a part of it. It needs several processes."""

    packing: bool = True
    """Put the examples of a batch into one sequence without padding, with their common prefix once, where the base
    allows it. Loss and gradient are the same, to rounding; with dropout, the common prefix has one mask per batch."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        if self.lr_scheduler_type == "constant_with_warmup" and not (
            self.warmup_ratio if self.warmup_steps is None else self.warmup_steps
        ):
            raise ValueError(
                "lr_scheduler_type constant_with_warmup needs warmup_ratio or warmup_steps above 0; without a warm-up, "
                "set lr_scheduler_type: constant"
            )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError(
                "early_stopping_threshold needs early_stopping_patience: the number of evaluations without such "
                "progress after which training stops"
            )
        return self
