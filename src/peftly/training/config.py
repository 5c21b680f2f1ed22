"""The settings of a training run, checked without importing torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["TrainConfig"]

Schedule = Literal["linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "inverse_sqrt"]


class TrainConfig(BaseModel):
    """How long, how fast, and how often to look.

    A step is one update of the trained weights: `batch_size` x `gradient_accumulation_steps` examples on every process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(default=5, ge=1)
    """How often every example is seen."""

    max_steps: int | None = Field(default=None, ge=1)
    """The number of steps, which then decides the length instead of `epochs`."""

    batch_size: int = Field(default=8, ge=1)
    """Examples of a batch, on each process."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches to a step; the gradient is that of one large batch, token by token."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the model at once, on each process; None: as many as make it fast and fit into memory. A
    step is the same whatever their number, and a longer example goes through alone."""

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The highest learning rate; None: the method's own."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw"
    """What turns gradients into updates. `8bit` keeps AdamW's moments in 8 bits, and `paged` lets them leave a GPU that
    is full; both need bitsandbytes, and are plain AdamW without it."""

    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Decay of the trained weights, decoupled from the gradient (for sgd: added to it)."""

    lr_scheduler_type: Schedule = "linear"
    """How the learning rate goes after the warm-up, by its name in transformers."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """The share of the steps in which the learning rate rises from 0."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """The number of such steps, which then decides instead of `warmup_ratio`."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """The length that a longer gradient is cut to; None: never cut."""

    seed: int = Field(default=0, ge=0)
    """Decides the order of the examples and the dropout."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the validation rows; None: once an epoch. The last step is always evaluated."""

    evaluation_batch_size: int = Field(default=32, ge=1)
    """Rows that go through the model at once in an evaluation."""

    save_steps: int | None = Field(default=None, ge=1)
    """Steps between saved adapters, each in its own `step-N` folder; None: only the best is saved."""

    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, which a stopped run goes on from (`--resume`); None: ten minutes between them."""

    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations in a row without a better one; None: never stop early."""

    metric_for_best_model: Literal["loss", "accuracy", "macro_f1", "entity_f1"] = "loss"
    """What makes an evaluation the best; equal accuracies or F1 scores are told apart by the loss."""

    gradient_checkpointing: bool | None = None
    """Compute every block twice and keep less: about a third slower, for a fraction of the memory. None: where one
    example alone takes too much memory otherwise."""

    frozen_layers_once: bool = True
    """Compute once what the layers below all that is trained make of an example, and read it in later epochs, where the
    base allows it. It is kept in memory, or in a temporary file if it has more than 1 GiB."""

    packing: bool = True
    """Lay the examples of a batch end to end, in one row without padding, and what they all begin with in front of it
    once, where the base can. The same loss and gradient, to rounding; with dropout such words have one mask a batch."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        if self.lr_scheduler_type == "constant_with_warmup" and not (
            self.warmup_ratio if self.warmup_steps is None else self.warmup_steps
        ):
            raise ValueError(
                "lr_scheduler_type constant_with_warmup needs warmup_ratio or warmup_steps above 0; for none, say lr_scheduler_type: constant"
            )
        return self
