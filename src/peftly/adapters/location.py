"""Where an adapter is, and what it wants its model to be: its base, its task, how its base was quantised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import snapshot_download
from pydantic import ValidationError

from peftly.adapters.files import (
    CARD,
    CONFIG,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TRAINING,
    adapters_in,
    class_labels,
    method_config,
    no_adapter,
    read_notes,
    read_peft_config,
)
from peftly.errors import AdapterError, ConfigError
from peftly.models import TASKS, Quantization, task_of_peft

if TYPE_CHECKING:
    from peftly.data import TaskName

__all__ = [
    "BaseRequirements",
    "base_requirements",
    "called",
    "check_weights",
    "corrects_quantization",
    "find_adapter",
    "find_adapters",
    "training_quantization",
]


def find_adapter(path_or_hub_id: str | Path) -> Path:
    """Return the folder of an adapter, or of several that were saved together.

    Args:
        path_or_hub_id: that folder, a run folder, or the Hub id of one adapter (which is downloaded).

    Raises:
        AdapterError: there is none.
    """
    folder = Path(path_or_hub_id)
    for candidate in (folder, folder / "adapter"):
        if adapters_in(candidate):
            return candidate
    if folder.exists() or str(path_or_hub_id).count("/") != 1 or str(path_or_hub_id).startswith((".", "/", "~")):
        raise no_adapter(folder)
    wanted = [CONFIG, TENSORS, TRAINING, NOTES, CARD]
    try:
        folder = Path(snapshot_download(str(path_or_hub_id), allow_patterns=wanted))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(f"{path_or_hub_id} is no folder here, and the Hub did not give it: {reason}") from error
    if not adapters_in(folder):
        raise AdapterError(f"{path_or_hub_id} is no folder here, and on the Hub it is no adapter: it has no {CONFIG}")
    return folder


def find_adapters(adapters: Sequence[str | Path]) -> dict[str, Path]:
    """Return the folders of adapters that are to work on one base, by what they were called.

    Args:
        adapters: each as `find_adapter` takes it, at least one.

    Raises:
        AdapterError: one of them is not there or is named twice, or they want different models.
    """
    found: dict[str, Path] = {}
    for one in map(str, adapters):
        folder = find_adapter(one)
        same = next((name for name, place in found.items() if place.resolve() == folder.resolve()), None)
        if same is not None:
            raise AdapterError(f"{same} and {one} are one adapter, {folder}; name each once")
        found[one] = folder
    first, *others = found
    home, kept = base_requirements(found[first]), training_quantization(found[first])
    for other in others:
        if (its := base_requirements(found[other])) != home:
            raise AdapterError(f"{first} is for {_words(home)}, and {other} for {_words(its)}")
        if training_quantization(found[other]) != kept:
            raise AdapterError(f"{first} and {other} were not trained over the same quantisation of their base")
    return found


def corrects_quantization(folders: Iterable[Path]) -> Path | None:
    """Return the first adapter in these folders that fits only the quantised base that it was trained over."""
    for place in (place for folder in folders for place in adapters_in(folder).values()):
        if method_config(place, read_peft_config(place)).corrects_quantization:
            return place
    return None


def called(folders: Mapping[str, Path]) -> list[str]:
    """Return what to call each adapter in these folders; those that were saved together by their own names as well."""
    together = {name: list(adapters_in(folder)) for name, folder in folders.items()}
    return [name if len(those) == 1 else f"{name}/{adapter}" for name, those in together.items() for adapter in those]


def check_weights(weights: Sequence[float] | None, adapters: Sequence[str]) -> None:
    """Do nothing if there is a number for each of these adapters, or none at all.

    Raises:
        ConfigError: there are more or fewer.
    """
    if weights is not None and len(weights) != len(adapters):
        count = "1 adapter" if len(adapters) == 1 else f"{len(adapters)} adapters"
        raise ConfigError(f"weights: {len(weights)} were given for {count} ({', '.join(adapters)})")


class BaseRequirements(NamedTuple):
    """What an adapter wants its model to be."""

    base: str
    task: TaskName | None
    labels: list[str]


def base_requirements(folder: Path) -> BaseRequirements:
    """Return what the adapter in `folder` wants its model to be, or all those that were saved together there.

    Raises:
        AdapterError: it names no base, or they want different models.
    """
    homes = {name: _home(place) for name, place in adapters_in(folder).items()}
    first, home = next(iter(homes.items()))
    for name, other in homes.items():
        for what, one, another in zip(BaseRequirements._fields, home, other, strict=True):
            if one != another:
                raise AdapterError(
                    f"the adapters in {folder} have no {what} in common: {first} is for {one}, and {name} for "
                    f"{another}; open one alone"
                )
    return home


def _home(folder: Path) -> BaseRequirements:
    config = read_peft_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{folder / CONFIG} names no base; open one with load_base and use load_adapter")
    task = task_of_peft(config.get("task_type"))
    return BaseRequirements(base, task, class_labels(folder) if task and TASKS[task].is_classification else [])


def _words(home: BaseRequirements) -> str:
    labels = f" of {', '.join(home.labels)}" if home.labels else ""
    return f"{home.base}{f' ({home.task}{labels})' if home.task else ''}"


def training_quantization(folder: Path) -> Quantization | None:
    """Return how the base was quantised that an adapter was trained over; None if it was not.

    Raises:
        AdapterError: what is noted of it is not known here.
    """
    noted = read_notes(folder).get(QUANTIZATION)
    try:
        return None if noted is None else Quantization.model_validate(noted)
    except ValidationError as error:
        raise AdapterError(f"{folder / NOTES}: {noted!r} is no quantisation that is known here") from error
