"""The head that a base gets for a task: its own, or a new one that is drawn from a seed and marked as new."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.injection import (
    NEW_PARAMETERS,
    NEW_PARAMETERS_SEED,
    base_modules,
    invalidate_cached_tensors,
    is_within,
    output_heads,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftly.data import TaskName
    from peftly.models.pooled import Pooling

__all__ = ["Head", "classifier_layer", "classifier_weights", "draw_new_weights", "has_new_classifier", "seeded"]


@dataclass(frozen=True)
class Head:
    """Head that a base is opened with.

    Attributes:
        task: task of the head; None: the task of the class that the base's config names.
        labels: labels of a classifier, in the order of its outputs; empty: those of the base's own head.
        seed: seed of new weights.
        pooling: pooling in front of the head of a sequence classifier; None: as the class of transformers has it.
        model_class: name of the class of transformers, for a head of another task or none; None: that of the task.
    """

    task: "TaskName | None" = None
    labels: tuple[str, ...] = ()
    seed: int = 0
    pooling: "Pooling | None" = None
    model_class: str | None = None

    def set_labels(self, config: Any) -> bool:
        """Write the labels into the config of a base, in place; return whether the base's own head has these labels."""
        if not self.labels:
            return True
        own_labels = [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: number for number, label in enumerate(self.labels)}
        if own_labels != list(self.labels):
            config.problem_type = None  # that of the base's own head
        return own_labels == list(self.labels)

    def finish(self, model: Any, report: Mapping[str, Any], *, has_own_labels: bool) -> list[str]:
        """Draw the weights that the files lack, and those of a head for other labels; mark them on the model.

        Args:
            model: model as transformers has opened it.
            report: transformers' report on the weights in the files.
            has_own_labels: result of `set_labels`.

        Returns:
            The sorted names of the new weights, without those of a head for `labels`, which is expected to be new.
        """
        new = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
        if not has_own_labels:
            # The same number of other labels: transformers has loaded the weights of the base's head.
            new.update(f"{path}.{name}" for path in output_heads(model) for name, _ in _parameters(model, path))
        setattr(model, NEW_PARAMETERS, tuple(sorted(new)))
        draw_new_weights(model, self.seed)
        return sorted(name for name in new if not (self.labels and is_within(name, output_heads(model))))


def draw_new_weights(model: Any, seed: int) -> None:
    """Draw the weights of a base that were not in its files, as its class draws them, in place."""
    import torch

    names: tuple[str, ...] = getattr(model, NEW_PARAMETERS, ())
    setattr(model, NEW_PARAMETERS_SEED, seed)
    # Some classes draw the weights of a layer when they initialise the head around it.
    enclosing_paths = dict.fromkeys(name[:end] for name in names for end in range(len(name)) if name[end] == ".")
    for path in enclosing_paths:
        for name, parameter in _parameters(model, path):
            parameter._is_hf_initialized = (
                f"{path}.{name}" not in names
            )  # transformers draws parameters without this mark
    with seeded(seed), torch.no_grad():
        for path in enclosing_paths:
            model._init_weights(model.get_submodule(path))


def classifier_layer(model: Any) -> "tuple[str, nn.Linear] | None":
    """Return path and module of the linear layer whose output is the logits of a classifier; None: there is none."""
    import torch

    heads = output_heads(model)
    count = model.config.num_labels
    layers = [
        (path, layer)
        for path, layer in base_modules(model)
        if isinstance(layer, torch.nn.Linear) and layer.out_features == count and is_within(path, heads)
    ]
    return layers[-1] if layers else None


def has_new_classifier(model: Any) -> bool:
    """Return whether the files of the base of a classifier do not contain the layer that computes its logits."""
    layer = classifier_layer(model)
    return layer is not None and f"{layer[0]}.weight" in getattr(model, NEW_PARAMETERS, ())


@contextmanager
def classifier_weights(model: Any, weight: "Tensor", bias: "Tensor | None") -> Iterator[None]:
    """Give the layer that computes the logits of a classifier other weights inside the block.

    Args:
        model: classifier with a `classifier_layer`.
        weight: (labels, width).
        bias: (labels,); None for a layer without one.
    """
    import torch

    found = classifier_layer(model)
    assert found is not None
    pairs = [
        (getattr(found[1], name), value) for name, value in (("weight", weight), ("bias", bias)) if value is not None
    ]
    drawn = [parameter.detach().clone() for parameter, _ in pairs]
    try:
        with torch.no_grad():
            for parameter, value in pairs:
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(pairs, drawn, strict=True):
                parameter.copy_(value)
        invalidate_cached_tensors()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers inside the block from `seed`; the global generators are as before afterwards."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _parameters(model: Any, path: str) -> list[tuple[str, Any]]:
    return list(model.get_submodule(path).named_parameters())
