"""Random damaged and hostile checkpoints, from which a training is to continue."""

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from training_jobs import IdTokenizer, data_of, lora_model

from peftly.errors import PeftlyError
from peftly.training.checkpoint import checkpoint_files, read_state, write_state
from peftly.training.config import TrainConfig
from peftly.training.loop import TrainingLoop
from peftly.training.train import train

CONFIG = TrainConfig(learning_rate=1e-2, epochs=1, batch_size=4, checkpoint_steps=1)
ODD_VALUES = [None, True, -1, 2**70, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": 1}, torch.zeros(3)]


class CheckpointFuzzer:
    """Changes the checkpoint of step 3 of 4, and continues from it.

    Attributes:
        outcomes: counts of the results: "ok", or the class of the error.
    """

    def __init__(self, folder: Path) -> None:
        data = data_of(16, 0)
        train(lora_model(), data, CONFIG, tokenizer=IdTokenizer(), out=folder / "first", delete_checkpoints=False)
        self.folder, self.data = folder, data
        self.file = next(file for file in checkpoint_files(folder / "first") if file.name == "checkpoint-3.safetensors")
        self.state, self.content = read_state(self.file), self.file.read_bytes()
        self.outcomes: Counter[str] = Counter()

    def run(self, seed: int) -> None:
        """Continue from one changed checkpoint.

        Raises:
            Exception: anything but a result or a PeftlyError comes out.
        """
        random, out = Random(seed), self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.folder / "first", out, ignore=shutil.ignore_patterns("checkpoint-*"))
        file = out / self.file.name
        patch = pytest.MonkeyPatch()
        if random.random() < 0.5:
            file.write_bytes(_changed_bytes(random, self.content))
        else:
            write_state(file, _changed_state(random, self.state))
            # The steps trust a state with the right hash whose parts could be loaded.
            patch.setattr(TrainingLoop, "run", lambda loop: [job.result() for job in loop.jobs])
        try:
            train(lora_model(), self.data, CONFIG, tokenizer=IdTokenizer(), out=out, resume=True)
        except PeftlyError as error:
            self.outcomes[type(error).__name__ if "\n" not in str(error) else f"several lines: {error}"] += 1
        else:
            self.outcomes["ok"] += 1
        finally:
            patch.undo()


def _changed_bytes(random: Random, content: bytes) -> bytes:
    """Return a file with flipped, removed, repeated or inserted bytes."""
    start, end = sorted(random.randrange(len(content)) for _ in range(2))
    if random.random() < 0.5:  # in the header
        start, end = start % 2000, start % 2000 + random.randrange(1, 40)
    changed = bytearray(content)
    kind = random.choice(["flip", "cut", "remove", "repeat", "insert", "size"])
    if kind == "flip":
        changed[start] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del changed[start:]
    elif kind == "remove":
        del changed[start:end]
    elif kind == "repeat":
        changed[start:start] = changed[start:end]
    elif kind == "insert":
        changed[start:start] = random.randbytes(random.randrange(1, 100))
    else:
        changed[:8] = random.choice([0, 1, 2**31, 2**62, 2**64 - 1]).to_bytes(8, "little")
    return bytes(changed)


def _changed_state(random: Random, state: Any) -> Any:
    """Return a copy of a state in which a random part is another value or missing; the file has the right hash."""
    if not isinstance(state, dict | list) or not state or random.random() < 0.1:
        return random.choice(ODD_VALUES)
    changed = state.copy()
    key = random.choice(list(state)) if isinstance(state, dict) else random.randrange(len(state))
    if isinstance(state, dict) and random.random() < 0.1:
        del changed[key]
    else:
        changed[key] = _changed_state(random, state[key])
    return changed
