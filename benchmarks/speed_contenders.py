"""Contenders of the speed benchmark: PEFT in transformers' Trainer, and peftly. `speed_floor` has their limit.

Both contenders start from the same weights, with the same optimizer (`torch.optim.AdamW` with torch's defaults, without
decay; Trainer's default would be its fused kernel), constant learning rate and gradient clipping. Nothing is evaluated,
saved or logged.

A timed run is one call of `Trainer.train` or `peftly.train`, with some optimizer steps. The time starts with the loop,
after the construction of the optimizer and before the first batch, and stops after the last step; both libraries report
these events to callbacks. So the time includes the construction of batches and excludes the setup, which is negligible
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
    """Wait until the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def base_of(job: Job, dtype: str, device: str | None) -> Base:
    """Load the base of a job."""
    task: Any = job.task
    return load_base(job.base, dtype=dtype, device=device, quantization=job.quantization, task=task, labels=job.labels)


def adapted(job: Job, dtype: str, device: str | None) -> Base:
    """Load the base of a job and attach its adapter, always with the same weights."""
    base = base_of(job, dtype, device)
    attach(base.model, METHODS[job.method].config(**job.settings), tokenizer=base.tokenizer)
    return base


def data_of(job: Job, tokenizer: Any) -> Data:
    """Return the encoded examples of a job."""
    task: Any = job.task
    with tempfile.TemporaryDirectory() as folder, as_file(files("peftly") / "sample_data" / "complaints") as tweets:
        if job.data == "tweets":
            file = tweets / "train.jsonl"
        else:
            file = Path(folder) / "rows.jsonl"
            write_rows(job.data, file)
        config = DataConfig(train=str(file), max_length=job.max_length, validation_fraction=0)
        return load_data(config, tokenizer, task=task)


class Peft:
    """PEFT in transformers' Trainer, with the adapter weights of `adapted`.

    Attributes:
        losses: loss of each batch of the last timed run, divided by the number of targets in the step of the batch.
    """

    def __init__(self, job: Job, setting: Setting, dtype: str, device: str | None) -> None:
        self.job, self.setting = job, setting
        self.model, self.tokenizer = self._model(dtype, device)
        self.losses: list[Tensor] = []

    def _model(self, dtype: str, device: str | None) -> tuple[Any, Any]:
        ours = adapted(self.job, dtype, device).model
        base, tokenizer = base_of(self.job, dtype, device)
        restore_quantized_layers(list(base.modules()))  # PEFT runs bitsandbytes' own layers
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
            # A soft prompt of PeftModel.from_pretrained cannot be trained.
            model = peft.get_peft_model(base, config)
            peft.set_peft_model_state_dict(model, load_file(Path(folder) / "adapter" / "adapter_model.safetensors"))
        if encoder := attached(ours)["default"].training_tensors():
            model.prompt_encoder["default"].load_state_dict(encoder)  # the file has only its output
        return model, tokenizer

    def time_steps(self, examples: Sequence[EncodedExample], step_size: int) -> float:
        """Train for one epoch in steps of `step_size` examples, and return the seconds.

        The examples are read in the given order, or sorted by length if the setting asks for it.
        """
        ordered = sorted(examples, key=lambda example: example.num_tokens) if self.setting.by_length else examples
        clock = _TrainerClock()
        AcceleratorState._reset_state(reset_partial_state=True)  # this global state must not keep another bf16 setting
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                use_cpu=self.model.device.type == "cpu",
                bf16=self.setting.autocast,
                per_device_train_batch_size=self.setting.batch_size,
                gradient_accumulation_steps=step_size // self.setting.batch_size,
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
                train_dataset=[self._features(example) for example in ordered],
                data_collator=self._collator(),
                processing_class=self.tokenizer,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        AcceleratorState._reset_state(reset_partial_state=True)
        self.losses = trainer.losses
        return clock.seconds

    def _features(self, example: EncodedExample) -> dict[str, Any]:
        labels = example.targets if example.label is None else example.label
        return {"input_ids": example.input_ids, "attention_mask": [1] * len(example.input_ids), "labels": labels}

    def _collator(self) -> Any:
        pad_to = self.setting.pad_to
        padding: Any = {"padding": True if pad_to is None else "max_length", "max_length": pad_to}
        if self.job.task == "causal_lm":
            # The recipe with padding to one length pads on the left.
            self.tokenizer.padding_side = "right" if pad_to is None else "left"
            return DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=UNTRAINED, **padding)
        return DataCollatorWithPadding(self.tokenizer, **padding)


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer that stores the loss of every batch; Trainer itself only logs rounded losses."""

    losses: list[Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.detach()]
        return loss


class _TrainerClock(TrainerCallback):  # type: ignore[misc]
    """Measures the seconds from the start of Trainer's loop to the end of its last step."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == state.max_steps:
            synchronize()
            self.seconds = time.perf_counter() - self._start


class Peftly:
    """Public functions of peftly with their defaults.

    Attributes:
        losses: loss of each step of the last timed run.
    """

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        self.model, self.tokenizer = adapted(job, dtype, device)
        self.data = data_of(job, self.tokenizer)
        self.losses: list[float] = []

    def time_steps(self, examples: Sequence[EncodedExample], step_size: int) -> float:
        """Train for one epoch in steps of `step_size` examples, and return the seconds."""
        config = TrainConfig(
            batch_size=step_size,
            max_steps=len(examples) // step_size,
            learning_rate=self.job.learning_rate,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            gradient_checkpointing=self.job.gradient_checkpointing,
        )
        clock = _PeftlyClock()
        split = replace(self.data.train, examples=[], encoded=list(examples))
        train(self.model, replace(self.data, train=split), config, tokenizer=self.tokenizer, callbacks=[clock])
        self.losses = clock.losses
        return clock.seconds


class _PeftlyClock(Callback):
    """Measures the seconds from the start of peftly's loop to the end of its last step, and stores the losses."""

    def __init__(self) -> None:
        self.seconds, self.losses = 0.0, list[float]()

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.loss)
        now = time.perf_counter()
        if record.step == record.steps:
            synchronize()
        self.seconds = record.seconds + time.perf_counter() - now
