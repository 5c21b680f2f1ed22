"""Jobs of the speed benchmark, as data: method, examples, and settings of PEFT for each job."""

from dataclasses import dataclass
from typing import Any

__all__ = ["JOBS", "Job", "Setting", "batches_of"]


@dataclass(frozen=True)
class Setting:
    """Batches of a step, and other choices that a user of PEFT and Trainer has.

    Attributes:
        batch_size: examples in a batch; the gradients of as many batches as needed are accumulated for a step.
        pad_to: length that every example is padded to, in tokens; None: the longest length of its batch.
        by_length: whether examples are sorted by length, which needs less padding.
        autocast: whether `bf16=True` is set; over a base in bf16, PEFT then makes no copies of the activations in fp32.
        base_dropout: whether the dropout of the base is on, as it is in Trainer unless the base is opened without.
        prepared: whether PEFT's `prepare_model_for_kbit_training` is called, which checkpoints every block and casts
            parameters that are not quantised to fp32.
    """

    batch_size: int
    pad_to: int | None = None
    by_length: bool = False
    autocast: bool = False
    base_dropout: bool = True
    prepared: bool = False

    def __str__(self) -> str:
        padding = "padded to the longest of a batch" if self.pad_to is None else f"padded to {self.pad_to}"
        options = {"in order of length": self.by_length, "bf16=True": self.autocast}
        options["base's dropout off"] = not self.base_dropout
        options["prepared for k-bit training"] = self.prepared
        chosen = [text for text, is_set in options.items() if is_set]
        return ", ".join([batches_of(self.batch_size), padding, *chosen])


def batches_of(size: int) -> str:
    """Return the description of batches with `size` examples."""
    return "batches of 1 example" if size == 1 else f"batches of {size} examples"


@dataclass(frozen=True)
class Job:
    """One measurement: training of one method on one kind of data, or generation.

    Attributes:
        description: the job in one line.
        method: name of the method in `METHODS`.
        settings: settings of the method, the same in PEFT and peftly.
        data: "tweets", or a kind in `speed_rows.KINDS`.
        max_length: maximum length of an example, in tokens.
        step_size: examples of an optimizer step; in generation, prompts of a batch.
        steps: optimizer steps in one timed run.
        classic: setting of PEFT in the tutorials.
        rivals: settings of PEFT that may be faster; the fastest in the warm-up is PEFT's best.
        floor_batch_sizes: batch sizes of the floor; the fastest in the warm-up is measured.
        aims: intended speed of peftly, relative to PEFT's classic and to PEFT's best setting.
        base: name of the base model.
        task: task of the base model.
        labels: labels of a classifier.
        learning_rate: learning rate of both libraries; None: the default of the method.
        new_tokens: tokens to generate for each prompt; 0: the job is training.
        quantization: quantisation of the linear layers of the base.
        gradient_checkpointing: whether peftly checkpoints every block, as PEFT's classic setting does; None: peftly
            decides.
    """

    description: str
    method: str
    settings: dict[str, Any]
    data: str
    max_length: int
    step_size: int
    steps: int
    classic: Setting
    rivals: tuple[Setting, ...]
    floor_batch_sizes: tuple[int, ...]
    aims: tuple[float | None, float | None]
    base: str = "smollm2-135m"
    task: str = "causal_lm"
    labels: tuple[str, ...] = ()
    learning_rate: float | None = None
    new_tokens: int = 0
    quantization: str | None = None
    gradient_checkpointing: bool | None = None


LORA = {"rank": 16, "alpha": 32.0}
INIT_TEXT = "Classify if the tweet is a complaint or not:"
TWEETS: dict[str, Any] = {
    "data": "tweets",
    "max_length": 64,
    "step_size": 8,
    "steps": 2,
    "classic": Setting(8, pad_to=64),
    "rivals": (Setting(8), Setting(8, by_length=True)),
    "floor_batch_sizes": (8,),
}
"""Short labelled tweets in batches of 8, padded to 64 as in the recipe of PEFT's prompt tuning page."""


def by_length(*batch_sizes: int, autocast: bool = True) -> tuple[Setting, ...]:
    """Return settings with these batch sizes and examples sorted by length, without and with `bf16=True`."""
    return tuple(Setting(size, by_length=True, autocast=is_on) for size in batch_sizes for is_on in {False, autocast})


def instructions(step_size: int, batch_size: int, steps: int, rivals: tuple[Setting, ...]) -> dict[str, Any]:
    """Return the fields that jobs on instructions share: PEFT pads to the longest of `batch_size` random examples."""
    return {
        "data": "instructions",
        "max_length": 256,
        "step_size": step_size,
        "steps": steps,
        "classic": Setting(batch_size),
        "rivals": rivals,
        "floor_batch_sizes": tuple(sorted({batch_size, *(rival.batch_size for rival in rivals)})),
    }


JOBS = {
    "W1": Job(
        "prompt tuning, 8 tokens, tweets, 8 examples a step",
        "prompt_tuning",
        {"num_virtual_tokens": 8, "init_text": INIT_TEXT},
        **TWEETS,
        aims=(2.5, 1.6),
    ),
    "W1L": Job(
        "prompt tuning, 100 tokens, tweets, 8 examples a step",
        "prompt_tuning",
        {"num_virtual_tokens": 100, "init_text": INIT_TEXT},
        **TWEETS,
        aims=(4, 3),
    ),
    "W2": Job(
        "prompt tuning, 10 tokens, instructions, 4 × 8 examples a step",
        "prompt_tuning",
        {"num_virtual_tokens": 10, "init_text": "Answer the question about a function in a few sentences:"},
        **instructions(step_size=32, batch_size=4, steps=1, rivals=by_length(4, 8, autocast=False)),
        aims=(1.7, 1.5),
    ),
    "W3": Job(
        "LoRA of rank 16, dropout 0.1, instructions, 1 × 16 examples a step",
        "lora",
        {**LORA, "dropout": 0.1},
        **instructions(step_size=16, batch_size=1, steps=1, rivals=by_length(1, 4)),
        aims=(1.6, 1.6),
    ),
    "W3Q": Job(
        "QLoRA: W3 over a base in NF4 with double quantisation, every block checkpointed",
        "lora",
        {**LORA, "dropout": 0.1},
        **instructions(step_size=16, batch_size=1, steps=1, rivals=by_length(1, 4))
        | {"classic": Setting(1, autocast=True, prepared=True)},
        aims=(2, None),
        quantization="nf4",
        gradient_checkpointing=True,
    ),
    "W4D": Job(
        "DoRA of rank 16, dropout 0.1, instructions, 4 examples a step",
        "dora",
        {**LORA, "dropout": 0.1},
        **instructions(step_size=4, batch_size=4, steps=2, rivals=by_length(4)),
        aims=(4, 2),
    ),
    "W4": Job(
        "DoRA of rank 16, no dropout, instructions, 4 examples a step",
        "dora",
        LORA,
        **instructions(step_size=4, batch_size=4, steps=2, rivals=by_length(4)),
        aims=(2, 2),
    ),
    "W5": Job(
        "LoRA of rank 8 on query and value, dropout 0.1, classification of sentences, 16 examples a step",
        "lora",
        {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ("query", "value")},
        "sentences",
        max_length=512,
        step_size=16,
        steps=1,
        classic=Setting(16, pad_to=512),
        rivals=(Setting(16, base_dropout=False), Setting(16, by_length=True, base_dropout=False)),
        floor_batch_sizes=(16,),
        aims=(30, 1.5),
        base="minilm-l6",
        task="sequence_classification",
        labels=("learning", "statistics"),
    ),
    "W6": Job(
        "prefix tuning, 30 tokens, tweets, 8 examples a step",
        "prefix_tuning",
        {"num_virtual_tokens": 30},
        **TWEETS,
        aims=(1.8, 1.5),
    ),
    "W6P": Job(
        "P-tuning, 20 tokens, tweets, 8 examples a step",
        "p_tuning",
        {"num_virtual_tokens": 20},
        **TWEETS,
        aims=(1.8, 1.5),
    ),
    "W7": Job(
        "greedy generation of 32 tokens for 16 prompts, each with one of four LoRA adapters of rank 16",
        "lora",
        LORA,
        "instructions",
        max_length=256,
        step_size=16,
        steps=1,
        classic=Setting(16),
        rivals=(),
        floor_batch_sizes=(),
        aims=(2, None),
        new_tokens=32,
    ),
    "W8": Job(
        "LoRA of rank 16, chats that share a system message of 200 tokens, 4 × 2 examples a step",
        "lora",
        LORA,
        "chats",
        max_length=512,
        step_size=8,
        steps=1,
        classic=Setting(4),
        rivals=by_length(4, 8),
        floor_batch_sizes=(4, 8),
        aims=(2, 2),
    ),
}
"""Jobs by short name. A letter after the number marks a variant of a job."""
