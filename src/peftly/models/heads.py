"""The head that a task puts on a base which has none for it: new, drawn from a seed, and known to be so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.injection import NEW_PARTS, is_below, output_heads

if TYPE_CHECKING:
    from peftly.data import TaskName

__all__ = ["Head", "draw_new_parts", "seeded"]


@dataclass(frozen=True)
class Head:
    """What a base is to be opened with.

    Attributes:
        task: what the head is for; None: whatever the base's config says.
        labels: what a classifier tells apart, in order; empty: what the base's own does.
        seed: of new weights.
    """

    task: "TaskName | None" = None
    labels: tuple[str, ...] = ()
    seed: int = 0

    def name_labels(self, config: Any) -> bool:
        """Write the labels into the config of a base, and say whether they are the base's own."""
        if not self.labels:
            return True
        own = [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: number for number, label in enumerate(self.labels)}
        return own == list(self.labels)

    def finish(self, model: Any, report: Mapping[str, Any], *, own_labels: bool) -> list[str]:
        """Draw a head anew that was made for other labels, and note on the model which parts are new.

        Args:
            model: as transformers has opened it.
            report: its loading info.
            own_labels: whether the head that the base may have is for these labels.

        Returns:
            The names of the new weights, sorted, without those of a head that was asked for.
        """
        new = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
        if not own_labels:
            # As many labels of another meaning: transformers has taken the base's head for ours.
            new.update(f"{path}.{name}" for path in output_heads(model) for name, _ in _parameters(model, path))
        setattr(model, NEW_PARTS, tuple(sorted(new)))
        draw_new_parts(model, self.seed)
        return sorted(name for name in new if not (self.labels and is_below(name, output_heads(model))))


def draw_new_parts(model: Any, seed: int) -> None:
    """Draw the weights of a base that were not in its files anew, as its class draws them, whatever they are now."""
    import torch

    names: tuple[str, ...] = getattr(model, NEW_PARTS, ())
    # Some classes draw the weights of a layer when they come to the head around it.
    around = dict.fromkeys(name[:end] for name in names for end in range(len(name)) if name[end] == ".")
    for path in around:
        for name, parameter in _parameters(model, path):
            parameter._is_hf_initialized = f"{path}.{name}" not in names  # transformers draws what is not
    with seeded(seed), torch.no_grad():
        for path in around:
            model._init_weights(model.get_submodule(path))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what is drawn inside come from `seed`; the global generators are as before afterwards."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _parameters(model: Any, path: str) -> list[tuple[str, Any]]:
    return list(model.get_submodule(path).named_parameters())
