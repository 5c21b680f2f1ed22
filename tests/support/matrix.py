"""The matrix of methods, tasks and architectures: its cells, and the adapted tiny model of each cell."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from model_state import observable_state
from references import DEFAULTS
from tiny import LABELS, TASKS, WINDOW, padded, perturb, random_token_ids, tiny_model

from peftly import METHODS, LoRA, attach, trainable_parameters, use_adapters

TEXTS = random_token_ids([5, 3 * WINDOW, 11, 7])
ANSWERS = random_token_ids([3, 6, 2, 4], seed=1)
TRAINED = [0, 1, 2]
"""The examples that a batch holds, by their index in `TEXTS`; the last text is for `ADAPTERS` only."""
ADAPTERS = ["own", None, ("own", "other"), "other"]
"""Adapters of each example of a batch: one, none, both, the other one."""


@dataclass(frozen=True)
class Cell:
    """One method on one architecture for one task."""

    method: str
    task: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.method}-{self.task}-{self.architecture}"

    @property
    def reason_left_out(self) -> str | None:
        """Why the method does not work on such a model, in its own words; None if it works."""
        return METHODS[self.method].adapter.unsupported_reason(bare_model(self.task, self.architecture))

    def config(self):
        """Return the settings of the method."""
        settings = dict(DEFAULTS.get(self.method, {}))
        if self.method == "selective" and self.architecture in ("distilbert", "bert", "roberta"):
            settings["head"] = False  # the classifier is trained anyway
        if self.method == "adapter":
            settings["init"] = "identity"  # as by default
        return METHODS[self.method].config(**settings)

    def base(self):
        """Return a new base, without dropout."""
        return without_dropout(tiny_model(self.architecture, task=self.task))


@cache
def bare_model(task: str, architecture: str):
    """Return the base of a task and an architecture, which nobody changes."""
    return tiny_model(architecture, task=task)


def cells(tasks: Mapping[str, tuple[str, ...]] = TASKS, methods=METHODS) -> list[Cell]:
    """Return every cell, also those that are left out."""
    return [Cell(m, task, a) for task, architectures in tasks.items() for a in architectures for m in methods]


class AdaptedCell:
    """The adapted model of a cell: trained for a few steps on one batch, then moved further at random.

    Attributes:
        model: the model with the adapter, which is named "own".
        state_before: observable state of the base.
        trained_dtypes: dtypes of the trained parameters of the fresh adapter.
        initial_change: relative change of the logits by the fresh adapter.
        losses: loss of the batch at each step.
        unmoved: names of the trained parameters that training did not change.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.task = cell, cell.task
        self.model = cell.base()
        next(self.model.parameters()).requires_grad_(False)
        self.state_before = observable_state(self.model)
        inputs, losses_of = batch_of(self.task, TRAINED)
        with torch.no_grad():
            before = logits_at_text(self.model(**inputs).logits, self.task, TRAINED, inputs["attention_mask"])
            attach(self.model, cell.config(), name="own")
            self.trained_dtypes = {parameter.dtype for parameter in trainable_parameters(self.model).values()}
            in_base_dtype(self.model)
            after = logits_at_text(self.model(**inputs).logits, self.task, TRAINED, inputs["attention_mask"])
        self.initial_change = float((after - before).norm() / before.norm())
        initial = {name: value.detach().clone() for name, value in trainable_parameters(self.model).items()}
        self.losses = self._train(inputs, losses_of)
        trained = trainable_parameters(self.model)
        self.unmoved = [name for name, value in trained.items() if torch.equal(value, initial[name])]
        perturb(trained.values(), scale=0.05)

    def _train(self, inputs, losses_of, steps: int = 4) -> list[float]:
        rate = 1e-3 if self.cell.method in ("full", "selective") else 3e-3
        optimizer = torch.optim.Adam(trainable_parameters(self.model).values(), rate)
        losses = []
        for _ in range(steps):
            loss = losses_of(self.model(**inputs).logits).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        self.model.zero_grad()
        return losses

    @cached_property
    def singles(self):
        """Logits, losses and gradients of each example alone."""
        return [results_of(self.model, self.task, [index]) for index in TRAINED]

    @cached_property
    def mixed(self):
        """Copy of the model with a second adapter, and the results of each example with its `ADAPTERS` alone."""
        model = attach(copy.deepcopy(self.model), LoRA(rank=2), name="other", seed=3)
        in_base_dtype(model)
        perturb([value for name, value in trainable_parameters(model).items() if ".other." in name], seed=4)
        singles = []
        for index, names in enumerate(ADAPTERS):
            with use_adapters(model, *([names] if isinstance(names, str) else names or ())):
                singles.append(results_of(model, self.task, [index]))
        return model, singles

    def take_model(self):
        """Return the model to a test that changes it; the next test builds another one."""
        adapted_cell.cache_clear()
        return self.model


@lru_cache(maxsize=1)
def adapted_cell(cell: Cell) -> AdaptedCell:
    """Return the adapted model of a cell; the tests of one cell, which run after one another, share it."""
    return AdaptedCell(cell)


def in_base_dtype(model):
    """Give the trained parameters the dtype of the base: fp32 would limit what float64 can show."""
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def without_dropout(model):
    """Switch off every dropout of a base, also for training mode."""
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "layerdrop", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def batch_of(task, indices, side="right"):
    """Return the inputs of some examples, and a function from their logits to the loss of each example."""
    ids, mask = padded([TEXTS[index] for index in indices], side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task == "seq2seq_lm":
        answers, real = padded([ANSWERS[index] for index in indices], "right")
        inputs |= {"decoder_input_ids": torch.cat([torch.full_like(answers[:, :1], 2), answers[:, :-1]], 1)}
        return inputs, lambda logits: _token_losses(logits, answers, real)
    if task == "sequence_classification":
        labels = torch.tensor([index % LABELS for index in indices])
        return inputs, lambda logits: torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if task == "token_classification":
        return inputs, lambda logits: _token_losses(logits, ids % LABELS, mask)
    following, real = torch.roll(ids, -1, 1), mask * torch.roll(mask, -1, 1)
    real[:, -1] = 0
    return inputs, lambda logits: _token_losses(logits, following, real)


def _token_losses(logits, targets, real):
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * real).sum(1)


@dataclass(frozen=True)
class Results:
    """Results of a batch: the logits at its text, all in one vector; the loss of each example; summed gradients."""

    logits: torch.Tensor
    losses: torch.Tensor
    gradients: dict[str, torch.Tensor]


def results_of(model, task, indices, side="right", **options) -> Results:
    """Run a batch forward and backward.

    Args:
        model: adapted model.
        task: its task.
        indices: examples of the batch, by their index in `TEXTS`.
        side: side of the padding.
        options: further arguments of the call.
    """
    inputs, losses_of = batch_of(task, indices, side)
    logits = model(**inputs, **options).logits
    losses = losses_of(logits)
    parameters = list(trainable_parameters(model).values())
    total = losses.sum() + sum(0 * parameter.sum() for parameter in parameters)  # an example may have no adapter
    gradients = torch.autograd.grad(total, parameters)
    named = dict(zip(trainable_parameters(model), gradients, strict=True))
    return Results(logits_at_text(logits.detach(), task, indices, inputs["attention_mask"]), losses.detach(), named)


def logits_at_text(logits, task, indices, mask) -> torch.Tensor:
    """Return the logits that a loss may read, in one vector: none at padding."""
    if task == "sequence_classification":
        return logits.flatten()
    if task == "seq2seq_lm":
        return torch.cat([own[: len(ANSWERS[index])].flatten() for own, index in zip(logits, indices, strict=True)])
    return logits[mask.bool()].flatten()


def flat(gradients) -> torch.Tensor:
    """Return all gradients in one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def change_of_logits(model, task) -> float:
    """Return the relative change of the logits of a batch by the adapters of a model."""
    inputs, _ = batch_of(task, TRAINED)
    with torch.no_grad():
        adapted = model(**inputs).logits
        with use_adapters(model):
            plain = model(**inputs).logits
    return float((adapted - plain).norm() / plain.norm())
