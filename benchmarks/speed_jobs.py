"""The jobs of the speed benchmark, as data: what is trained on which rows, and how PEFT is set up for it."""

from dataclasses import dataclass
from typing import Any

__all__ = ["JOBS", "Job", "Setting"]


@dataclass(frozen=True)
class Setting:
    """How the batches of a step are made, and what else a user of PEFT and Trainer may choose.

    Attributes:
        batch: rows that go through the model at once; as many batches make a step as its rows need.
        pad_to: tokens that every row is filled up to; None: to the longest of its batch.
        by_length: whether rows of like length go together, which pads less.
        autocast: whether `bf16=True`, which on a base in bf16 spares PEFT its copies of the activations in fp32.
        base_dropout: whether the base's own dropout is on, as Trainer has it unless the base is opened without.
        prepared: whether PEFT's `prepare_model_for_kbit_training` is called, which checkpoints every block and keeps
            what is not quantised in fp32.
    """

    batch: int
    pad_to: int | None = None
    by_length: bool = False
    autocast: bool = False
    base_dropout: bool = True
    prepared: bool = False

    def __str__(self) -> str:
        padding = "padded to the longest of a batch" if self.pad_to is None else f"padded to {self.pad_to}"
        more = {"in order of length": self.by_length, "bf16=True": self.autocast}
        more["base's dropout off"] = not self.base_dropout
        more["prepared for k-bit training"] = self.prepared
        return ", ".join([f"{self.batch} rows at once", padding, *(words for words, true in more.items() if true)])


@dataclass(frozen=True)
class Job:
    """One kind of training.

    Attributes:
        says: the job in a few words.
        method: its name in `METHODS`.
        settings: of the method, for us and for PEFT.
        rows: "tweets", or a kind in `speed_rows.KINDS`.
        max_length: tokens of a row, at most.
        step: rows of a step.
        steps: in a turn.
        classic: PEFT as the tutorials set it up.
        rivals: settings of PEFT that may be faster; the fastest in the warm-up is its best.
        floor_batches: rows that the floor takes at once; the fastest in the warm-up stands.
        aims: how many times as fast as PEFT's classic and best setting it is to be.
        base: what is adapted.
        task: what it learns.
        labels: what a classifier tells apart.
        learning_rate: of the steps; None: the method's default.
        writes: tokens that are generated for every row; 0: the job is training.
        quantization: how the base's linear layers are kept.
        checkpointing: whether we compute every block twice, as PEFT's classic setting does.
    """

    says: str
    method: str
    settings: dict[str, Any]
    rows: str
    max_length: int
    step: int
    steps: int
    classic: Setting
    rivals: tuple[Setting, ...]
    floor_batches: tuple[int, ...]
    aims: tuple[float | None, float | None]
    base: str = "smollm2-135m"
    task: str = "causal_lm"
    labels: tuple[str, ...] = ()
    learning_rate: float | None = None
    writes: int = 0
    quantization: str | None = None
    checkpointing: bool | None = None


LORA = {"rank": 16, "alpha": 32.0}
TEXT = "Classify if the tweet is a complaint or not:"
TWEETS: dict[str, Any] = {
    "rows": "tweets",
    "max_length": 64,
    "step": 8,
    "steps": 2,
    "classic": Setting(8, pad_to=64),
    "rivals": (Setting(8), Setting(8, by_length=True)),
    "floor_batches": (8,),
}
"""Short labelled tweets in batches of 8, padded to 64 as in the recipe of PEFT's prompt tuning page."""


def by_length(*batches: int, autocast: bool = True) -> tuple[Setting, ...]:
    """Return the settings with these batches of rows of like length, without and with `bf16=True`."""
    return tuple(Setting(batch, by_length=True, autocast=on) for batch in batches for on in {False, autocast})


def instructions(step: int, batch: int, steps: int, rivals: tuple[Setting, ...]) -> dict[str, Any]:
    """Return what the jobs on instructions share: PEFT pads to the longest of `batch` rows drawn at random."""
    return {
        "rows": "instructions",
        "max_length": 256,
        "step": step,
        "steps": steps,
        "classic": Setting(batch),
        "rivals": rivals,
        "floor_batches": tuple(sorted({batch, *(rival.batch for rival in rivals)})),
    }


JOBS = {
    "W1": Job(
        "prompt tuning, 8 tokens, tweets, 8 rows a step",
        "prompt_tuning",
        {"num_virtual_tokens": 8, "init_text": TEXT},
        **TWEETS,
        aims=(2.5, 1.6),
    ),
    "W1L": Job(
        "prompt tuning, 100 tokens, tweets, 8 rows a step",
        "prompt_tuning",
        {"num_virtual_tokens": 100, "init_text": TEXT},
        **TWEETS,
        aims=(4, 3),
    ),
    "W2": Job(
        "prompt tuning, 10 tokens, instructions, 4 × 8 rows a step",
        "prompt_tuning",
        {"num_virtual_tokens": 10, "init_text": "Answer the question about a function in a few sentences:"},
        **instructions(step=32, batch=4, steps=1, rivals=by_length(4, 8, autocast=False)),
        aims=(1.7, 1.5),
    ),
    "W3": Job(
        "LoRA of rank 16, dropout 0.1, instructions, 1 × 16 rows a step",
        "lora",
        {**LORA, "dropout": 0.1},
        **instructions(step=16, batch=1, steps=1, rivals=by_length(1, 4)),
        aims=(1.6, 1.6),
    ),
    "W3Q": Job(
        "QLoRA: the same over a base in NF4 with double quantisation, every block computed twice",
        "lora",
        {**LORA, "dropout": 0.1},
        **instructions(step=16, batch=1, steps=1, rivals=by_length(1, 4))
        | {"classic": Setting(1, autocast=True, prepared=True)},
        aims=(2, None),
        quantization="nf4",
        checkpointing=True,
    ),
    "W4D": Job(
        "DoRA of rank 16, dropout 0.1, instructions, 4 rows a step",
        "dora",
        {**LORA, "dropout": 0.1},
        **instructions(step=4, batch=4, steps=2, rivals=by_length(4)),
        aims=(4, 2),
    ),
    "W4": Job(
        "DoRA of rank 16, no dropout, instructions, 4 rows a step",
        "dora",
        LORA,
        **instructions(step=4, batch=4, steps=2, rivals=by_length(4)),
        aims=(2, 2),
    ),
    "W5": Job(
        "LoRA of rank 8 on query and value, dropout 0.1, classifying sentences, 16 rows a step",
        "lora",
        {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ("query", "value")},
        "sentences",
        max_length=512,
        step=16,
        steps=1,
        classic=Setting(16, pad_to=512),
        rivals=(Setting(16, base_dropout=False), Setting(16, by_length=True, base_dropout=False)),
        floor_batches=(16,),
        aims=(30, 1.5),
        base="minilm-l6",
        task="sequence_classification",
        labels=("learning", "statistics"),
    ),
    "W6": Job(
        "prefix tuning, 30 tokens, tweets, 8 rows a step",
        "prefix_tuning",
        {"num_virtual_tokens": 30},
        **TWEETS,
        aims=(1.8, 1.5),
    ),
    "W6P": Job(
        "P-tuning, 20 tokens, tweets, 8 rows a step",
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
        step=16,
        steps=1,
        classic=Setting(16),
        rivals=(),
        floor_batches=(),
        aims=(2, None),
        writes=32,
    ),
    "W8": Job(
        "LoRA of rank 16, chats that share a system message of 200 tokens, 4 × 2 rows a step",
        "lora",
        LORA,
        "chats",
        max_length=512,
        step=8,
        steps=1,
        classic=Setting(4),
        rivals=by_length(4, 8),
        floor_batches=(4, 8),
        aims=(2, 2),
    ),
}
"""By short names; a letter behind the number tells variants of one job apart."""
