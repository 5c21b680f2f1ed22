"""Who takes turns in the speed benchmark: PEFT with transformers' Trainer, and peftly. `speed_floor` is their limit.

A turn is some optimizer steps over given rows. All start from the same weights and have the same optimizer
(`torch.optim.AdamW` without decay, as torch sets it up by default; Trainer's own default would be its fused kernel),
constant learning rate and limit on the gradient's length; none evaluates, saves or logs. A turn is one whole call of
`Trainer.train` or `peftly.train`, timed from where the loop starts (the optimizer is made, the first batch is not) to
the end of the last step, which both report to callbacks: making batches counts, setting up does not, as it would vanish
in a run of real length.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from speed_jobs import Job, Setting
from speed_rows import write_rows
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peftly import METHODS, TrainConfig, attach, attached, load_base, save_adapter, train
from peftly.data import Data, DataConfig, EncodedExample, load_data
from peftly.data.types import UNTRAINED
from peftly.injection.quantized_layers import restore_quantized_layers
from peftly.models.loading import Base
from peftly.training.callbacks import Callback, StepRecord

__all__ = ["Peft", "Peftly", "adapted", "base_of", "data_of", "synchronize"]


def synchronize() -> None:
    """Wait for what a GPU has still to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def base_of(job: Job, dtype: str, device: str | None) -> Base:
    """Open the job's base."""
    task: Any = job.task
    return load_base(job.base, dtype=dtype, device=device, quantization=job.quantization, task=task, labels=job.labels)


def adapted(job: Job, dtype: str, device: str | None) -> Base:
    """Open the job's base and put its adapter on, always with the same weights."""
    base = base_of(job, dtype, device)
    attach(base.model, METHODS[job.method].config(**job.settings), tokenizer=base.tokenizer)
    return base


def data_of(job: Job, tokenizer: Any) -> Data:
    """Return the job's rows as tokens."""
    task: Any = job.task
    with tempfile.TemporaryDirectory() as folder, as_file(files("peftly") / "sample_data" / "complaints") as tweets:
        file = tweets / "train.jsonl" if job.rows == "tweets" else Path(folder) / "rows.jsonl"
        if job.rows != "tweets":
            write_rows(job.rows, file)
        config = DataConfig(train=str(file), max_length=job.max_length, validation_fraction=0)
        return load_data(config, tokenizer, task)


class Peft:
    """PEFT's model of the adapter that `adapted` makes, with its weights, in transformers' Trainer.

    Attributes:
        losses: of every batch of the last turn, divided by the number of targets of its step.
    """

    def __init__(self, job: Job, setting: Setting, dtype: str, device: str | None) -> None:
        self.job, self.setting = job, setting
        self.model, self.tokenizer = self._model(dtype, device)
        self.losses: list[Tensor] = []

    def _model(self, dtype: str, device: str | None) -> tuple[Any, Any]:
        ours = adapted(self.job, dtype, device).model
        base, tokenizer = base_of(self.job, dtype, device)
        restore_quantized_layers(list(base.modules()))  # quantised layers compute as bitsandbytes has them
        if self.setting.prepared:
            base = peft.prepare_model_for_kbit_training(base)
        if not self.setting.base_dropout:
            for module in base.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(ours, Path(folder) / "adapter")
            config = peft.PeftConfig.from_pretrained(str(Path(folder) / "adapter"))
            config.inference_mode = False
            # PeftModel.from_pretrained gives no soft prompt that can be trained.
            model = peft.get_peft_model(base, config)
            peft.set_peft_model_state_dict(model, load_file(Path(folder) / "adapter" / "adapter_model.safetensors"))
        if encoder := attached(ours)["default"].training_tensors():
            model.prompt_encoder["default"].load_state_dict(encoder)  # the file has what came of it
        return model, tokenizer

    def turn(self, rows: Sequence[EncodedExample], step: int) -> float:
        """Take a step for every `step` rows, in their order or in that of their length, and return the seconds."""
        ordered = sorted(rows, key=lambda row: row.num_tokens) if self.setting.by_length else rows
        clock = _Clock()
        AcceleratorState._reset_state(reset_partial_state=True)  # it may not change between bf16=True and none
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                use_cpu=self.model.device.type == "cpu",
                bf16=self.setting.autocast,
                per_device_train_batch_size=self.setting.batch,
                gradient_accumulation_steps=step // self.setting.batch,
                num_train_epochs=1,
                learning_rate=self.job.learning_rate or METHODS[self.job.method].learning_rate,
                lr_scheduler_type="constant",
                optim="adamw_torch",
                weight_decay=0.0,
                max_grad_norm=1.0,
                train_sampling_strategy="sequential",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                disable_tqdm=True,
            )
            trainer = _Trainer(
                self.model,
                arguments,
                train_dataset=[self._row(row) for row in ordered],
                data_collator=self._collator(),
                processing_class=self.tokenizer,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        AcceleratorState._reset_state(reset_partial_state=True)
        self.losses = trainer.losses
        return clock.seconds

    def _row(self, row: EncodedExample) -> dict[str, Any]:
        found = {"input_ids": row.input_ids, "attention_mask": [1] * len(row.input_ids)}
        return {**found, "labels": row.targets if row.label is None else row.label}

    def _collator(self) -> Any:
        pad_to = self.setting.pad_to
        padding: Any = {"padding": True if pad_to is None else "max_length", "max_length": pad_to}
        if self.job.task == "causal_lm":
            # The recipe that pads to one length does it on the left.
            self.tokenizer.padding_side = "right" if pad_to is None else "left"
            return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=UNTRAINED, **padding)
        return DataCollatorWithPadding(self.tokenizer, **padding)


class _Trainer(Trainer):  # type: ignore[misc]
    """Keeps the loss of every batch, which is otherwise only logged, and rounded."""

    losses: list[Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.detach()]
        return loss


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the start of Trainer's loop to the end of its last step."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self._began = time.perf_counter()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == state.max_steps:
            synchronize()
            self.seconds = time.perf_counter() - self._began


class Peftly:
    """peftly, by its public functions, as it is by default.

    Attributes:
        losses: of every step of the last turn.
    """

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        self.model, self.tokenizer = adapted(job, dtype, device)
        self.data = data_of(job, self.tokenizer)
        self.losses: list[float] = []

    def turn(self, rows: Sequence[EncodedExample], step: int) -> float:
        """Take a step for every `step` rows, and return the seconds."""
        config = TrainConfig(
            batch_size=step,
            max_steps=len(rows) // step,
            learning_rate=self.job.learning_rate,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            gradient_checkpointing=self.job.checkpointing,
        )
        clock = _StepClock()
        chosen = replace(self.data.train, examples=[], encoded=list(rows))
        train(self.model, replace(self.data, train=chosen), config, tokenizer=self.tokenizer, callbacks=[clock])
        self.losses = clock.losses
        return clock.seconds


class _StepClock(Callback):
    """Seconds from the start of peftly's loop, and the losses."""

    def __init__(self) -> None:
        self.seconds, self.losses = 0.0, list[float]()

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.loss)
        now = time.perf_counter()
        if record.step == record.steps:
            synchronize()
        self.seconds = record.seconds + time.perf_counter() - now
