"""Commands that write to a disk, and what must hold after each of them was stopped at any moment."""

import gc
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from commands import Outcome, peftly_here
from crash_disk import exit_code
from tiny import perturb

from peftly import LoRA, attach, load_base, save_adapter, trainable_parameters
from peftly.errors import PeftlyError
from peftly.training.loop import TrainingLoop

NAMES = (
    "train",
    "train with checkpoints",
    "resume",
    "overwrite a finished run",
    "overwrite an unfinished run",
    "train an ensemble",
    "overwrite an ensemble",
    "quickstart",
    "quickstart again",
    "save an adapter",
    "save over another adapter",
    "save over adapters saved together",
    "save adapters together",
    "merge",
    "overwrite with merge",
    "export --to peft",
    "overwrite with export --to peft",
    "export --to gguf",
    "overwrite with export --to gguf",
    "combine",
    "overwrite with combine",
)
"""Names of all cases."""

SLOW = ("train an ensemble", "overwrite an ensemble", "quickstart", "quickstart again")
"""Cases of which every third power cut is tried, and every third file operation without space."""


@dataclass(frozen=True)
class Case:
    """A command that writes into the folder `out`.

    Attributes:
        name: name of the case.
        kind: what it writes: run, together, quickstart, adapter, model or export.
        command: function that runs it in the current folder.
        before: functions that make the earlier content of the folder.
        again: function that makes the same content from the beginning; None: `command`.
        older: function that makes the content to which the earlier unfinished run continues.
    """

    name: str
    kind: str
    command: Callable[..., Outcome]
    before: tuple[Callable[..., Outcome], ...] = ()
    again: Callable[..., Outcome] | None = None
    older: Callable[..., Outcome] | None = None


@dataclass(frozen=True)
class Expected:
    """Content of `out` before a command, and after it; None: there was no such folder.

    Attributes:
        earlier: content before the command.
        new: content after it.
        older: content to which the earlier unfinished run continues; None: there is none.
    """

    earlier: dict[str, Any] | None
    new: dict[str, Any]
    older: dict[str, Any] | None = None


class World:
    """Inputs of the commands, and a model to save. The libraries are imported once, for all copies of the process."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.rows = folder / "rows.jsonl"
        texts = [{"text": f"row {number}", "label": ("yes", "no")[number % 2]} for number in range(12)]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
        for name, seed in (("a", 1), ("b", 2)):
            done(self.train("--seed", seed, out=folder / name)())
        done(self.quickstart(folder / "start"))
        done(peftly_here("merge", folder / "a", "--out", folder / "merged"))
        done(peftly_here("export", folder / "a", "--to", "gguf", "--out", folder / "gguf"))
        self.model, tokenizer = load_base(str(base), dtype="float32")
        for name, seed in (("one", 1), ("two", 2)):
            attach(self.model, LoRA(rank=seed), name=name, tokenizer=tokenizer)
            perturb([p for n, p in trainable_parameters(self.model).items() if f".{name}." in n], seed=seed)
        gc.collect()
        gc.freeze()  # a collection would copy the memory that a fork shares

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def train(self, *words: Any, out: str | Path = "out") -> Callable[..., Outcome]:
        settings = ["--method", "lora", "--set", "method.rank=2", "--batch-size", 4, "--epochs", 2]
        settings += ["--set", "data.validation_fraction=0.25"]
        return cli("train", "--base", self.base, "--data", self.rows, *settings, *words, "--out", out)

    def quickstart(self, out: str | Path = "out", seed: int = 0) -> Outcome:
        settings = ["--limit", 4, "--epochs", 1, "--seed", seed]
        return peftly_here("quickstart", "--base", self.base, *settings, "--out", out)

    def save(self, *, name: str | None, scale: float = 1.0) -> Callable[[], Outcome]:
        def command() -> Outcome:
            for parameter in trainable_parameters(self.model).values():
                parameter.data.mul_(scale)
            try:
                save_adapter(self.model, "out", name=name)
            except PeftlyError as error:
                return Outcome(2, "", f"error: {error}\n")
            return Outcome(0, "", "")

        return command

    @cached_property
    def cases(self) -> list[Case]:
        a, b, steps = self.folder / "a", self.folder / "b", ("--set", "train.checkpoint_steps=2")
        older = self.train(*steps, "--seed", 7)
        two, overwrites = self.save(name=None), "--overwrite"
        cases = [
            Case("train", "run", self.train()),
            Case("train with checkpoints", "run", self.train(*steps, "--set", "train.save_steps=3")),
            Case("resume", "run", cli("train", "--resume", "out"), (self._unfinished,), again=older),
            Case("overwrite a finished run", "run", self.train(*steps, overwrites), (older,)),
            Case(
                "overwrite an unfinished run", "run", self.train(*steps, overwrites), (self._unfinished,), older=older
            ),
            Case("train an ensemble", "together", self.train(*steps, "--ensemble", 2)),
            Case(
                "overwrite an ensemble",
                "together",
                self.train(*steps, "--ensemble", 2, overwrites),
                (self.train("--ensemble", 2, "--seed", 7),),
            ),
            Case("quickstart", "quickstart", self.quickstart),
            Case("quickstart again", "quickstart", self.quickstart, (lambda: self.quickstart(seed=3),)),
            Case("save an adapter", "adapter", self.save(name="one")),
            Case("save over another adapter", "adapter", self.save(name="one", scale=2), (self.save(name="two"),)),
            Case("save over adapters saved together", "adapter", self.save(name="two"), (two,)),
            Case("save adapters together", "adapter", self.save(name=None, scale=2), (two,)),
        ]
        written = [("merge", "model"), ("export --to peft", "adapter"), ("export --to gguf", "gguf")]
        for words, kind in [*written, ("combine", "adapter")]:
            new, earlier = ([a], [b]) if words != "combine" else ([a, b], [a, b, "--weights", "2,1"])
            new, earlier = (cli(*words.split(), *sources, "--out", "out") for sources in (new, earlier))
            cases += [
                Case(words, kind, new),
                Case(f"overwrite with {words}", kind, cli(*new.words, overwrites), (earlier,)),
            ]
        assert tuple(case.name for case in cases) == NAMES
        return cases

    def unfinished_in(self, root: Path) -> None:
        os.chdir(root)
        done(self._unfinished())

    def _unfinished(self) -> Outcome:
        """Train until the second checkpoint, and end the process there."""

        def write_checkpoint(loop: Any) -> None:
            original(loop)
            if loop.jobs[0].step == 4:
                os._exit(137)

        original = TrainingLoop.write_checkpoint
        with patch.object(TrainingLoop, "write_checkpoint", write_checkpoint):
            status = exit_code(self.train("--seed", 7, "--set", "train.checkpoint_steps=2"))
        return Outcome(0 if status == 137 else 1, "", f"ended with {status}")


def cli(*words: Any) -> Any:
    """Return a function that runs a command."""

    def command(*more: Any) -> Outcome:
        return peftly_here(*words, *more)

    command.words = words
    return command


def done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err
