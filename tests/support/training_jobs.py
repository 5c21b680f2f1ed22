"""Small jobs that the tests of training share."""

from importlib import import_module

import torch
from tiny import tiny_model

from peftly import LoRA, attach, trainable_parameters
from peftly.data import Data, EncodedExample, Example, RowFormat, Split
from peftly.evaluation.metrics import Evaluation
from peftly.training.callbacks import StepRecord
from peftly.training.config import TrainConfig
from peftly.training.train import train

SHAPE = RowFormat("completion", "{prompt}", "completion")


class IdTokenizer:
    """The attributes of a tokenizer that `train` reads."""

    pad_token_id = 0
    eos_token_id = 2


def split_of(count: int, seed: int) -> Split:
    """Examples of many lengths with an answer that can be learned: the prompt's first token again, then the end."""
    draw = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        length = int(torch.randint(2, 9, (1,), generator=draw))
        prompt = torch.randint(3, 12, (length,), generator=draw).tolist()
        answer = [prompt[0]] * int(torch.randint(1, 4, (1,), generator=draw)) + [2]
        encoded.append(EncodedExample(prompt + answer, [False] * length + [True] * len(answer), 0))
    return Split([Example(prompt="p", completion="c")] * count, encoded)


def data_of(count: int = 16, validation: int = 6) -> Data:
    return Data(split_of(count, 0), split_of(validation, 1) if validation else None, None, SHAPE, None)


def lora_model(dtype: torch.dtype = torch.float32):
    model = attach(tiny_model("llama", dtype), LoRA(rank=2), seed=1)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    return model


def run(model=None, data=None, out=None, callbacks=(), **settings):
    model = lora_model() if model is None else model
    config = TrainConfig(**{"learning_rate": 1e-2, "epochs": 2, "batch_size": 4} | settings)
    return model, train(model, data or data_of(), config, tokenizer=IdTokenizer(), out=out, callbacks=callbacks)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def steps(result) -> list[StepRecord]:
    return [record for record in result.history if isinstance(record, StepRecord)]


def collated(monkeypatch) -> list[list[EncodedExample]]:
    """Return a list that will have the examples of every micro-batch, packed or padded."""
    seen, losses = [], import_module("peftly.training.losses")
    for name in ("collate", "collate_packed"):
        original = getattr(losses, name)

        def recorded(examples, original=original, **settings):
            seen.append(list(examples))
            return original(examples, **settings)

        monkeypatch.setattr(losses, name, recorded)
    return seen


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


class Scores:
    """Evaluations with these losses, in order; the weights of each are recorded."""

    def __init__(self, *losses, accuracies=None):
        self.losses, self.accuracies, self.seen = iter(losses), iter(accuracies or [None] * len(losses)), []

    def __call__(self, model, *_args, **_settings):
        self.seen.append(weights(model))
        return Evaluation(
            rows=1, tokens=1, loss=next(self.losses), perplexity=1, token_accuracy=1, accuracy=next(self.accuracies)
        )
