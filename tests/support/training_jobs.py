"""Small jobs that the tests of training share."""

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
    """What `train` asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 2


def split_of(count: int, seed: int) -> Split:
    """Rows of many lengths, whose answer can be learned: the prompt's first token again, then the end."""
    draw = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        length = int(torch.randint(2, 9, (1,), generator=draw))
        prompt = torch.randint(3, 12, (length,), generator=draw).tolist()
        answer = [prompt[0]] * int(torch.randint(1, 4, (1,), generator=draw)) + [2]
        encoded.append(EncodedExample(prompt + answer, [False] * length + [True] * len(answer), 0))
    return Split([Example(prompt="p", completion="c")] * count, encoded)


def data_of(rows: int = 16, validation: int = 6) -> Data:
    return Data(split_of(rows, 0), split_of(validation, 1) if validation else None, None, SHAPE, None)


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


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


class Scores:
    """Evaluations with these losses, in order; each notes the weights that it saw."""

    def __init__(self, *losses, accuracies=None):
        self.losses, self.accuracies, self.seen = iter(losses), iter(accuracies or [None] * len(losses)), []

    def __call__(self, model, *_args, **_settings):
        self.seen.append(weights(model))
        return Evaluation(
            rows=1, tokens=1, loss=next(self.losses), perplexity=1, token_accuracy=1, accuracy=next(self.accuracies)
        )
