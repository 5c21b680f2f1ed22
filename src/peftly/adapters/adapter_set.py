"""Adapters that are opened together, found by a path or a Hub id and read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download

from peftly.adapters.files import ADAPTER_FILES, CONFIG, NOTES, ROW_FORMAT, TENSORS, TOGETHER, escaped, no_tensors
from peftly.adapters.folder import AdapterFolder, BaseRequirements, no_adapter, quantization_in, read_notes
from peftly.adapters.own_tokenizer import TOKENIZER_FILES
from peftly.data import RowFormat
from peftly.errors import AdapterError, BaseModelError, ConfigError
from peftly.models import resolve_base
from peftly.utils import recover, warn

if TYPE_CHECKING:
    from peftly.models import BaseSpec, Quantization

__all__ = [
    "AdapterSet",
    "AdapterSource",
    "adapter_names",
    "check_number_of_weights",
    "check_source",
    "correcting_adapter",
    "names_saved_together",
    "not_fetched",
    "open_adapters",
    "open_compatible_adapters",
]

_ReadNotes = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class AdapterSet:
    """One adapter, or several that were saved by one call of `save_adapter`.

    Attributes:
        source: path or Hub id that was opened, as the user wrote it.
        path: folder of the adapter, or the folder with a folder for each adapter.
        folders: adapter folders by name, in the order of attachment; "default" for an adapter that was saved alone.
    """

    source: str
    path: Path
    folders: Mapping[str, AdapterFolder]

    def named(self, name: str) -> dict[str, AdapterFolder]:
        """Return the adapters by their names in a model: `name` for one that was saved alone, else their own names."""
        first = next(iter(self.folders.values()))
        return {name: first} if first.path == self.path else dict(self.folders)

    @cached_property
    def requirements(self) -> BaseRequirements:
        """Requirements on the base, the same for all adapters.

        Raises:
            AdapterError: an adapter names no base, or two of them differ in their requirements.
        """
        requirements = {name: folder.requirements for name, folder in self.folders.items()}
        first, shared = next(iter(requirements.items()))
        for name, other in requirements.items():
            for field, value, other_value in zip(BaseRequirements._fields, shared, other, strict=True):
                if value != other_value:
                    raise AdapterError(
                        f"the adapters in {self.path} have no {field} in common: {first} is for {_shown(value)}, and "
                        f"{name} for {_shown(other_value)}; open one alone"
                    )
        return shared

    @cached_property
    def base(self) -> BaseSpec:
        """The base, whose files have been found.

        Raises:
            AdapterError: as for `requirements`.
            BaseModelError: the base cannot be found or fetched.
        """
        name = self.requirements.base
        try:
            base = resolve_base(name)
            if not base.is_local:
                base.file_names  # noqa: B018 - asks the Hub, which may not have the base
        except BaseModelError as error:
            if any(folder.moved_base for folder in self.folders.values()):
                raise
            raise BaseModelError(
                f"{error}; {self.path} names this base: if it has moved, give it with --base, or base= in Python"
            ) from error
        revisions = {folder.peft_config.get("revision") for folder in self.folders.values()} - {None, "", "main"}
        if revisions and base.kind == "hub":
            warn(
                f"{self.path} was trained over the revision {escaped(', '.join(map(str, revisions)))} of {name}, and "
                "peftly opens its main revision: download the other one, and give its folder with --base, or base= in "
                "Python"
            )
        return base

    def over(self, base: str | None) -> AdapterSet:
        """Return the same adapters with another base than the one that their files name; None: the same."""
        if base is None:
            return self
        folders = {name: replace(folder, moved_base=str(base)) for name, folder in self.folders.items()}
        return replace(self, folders=MappingProxyType(folders))

    @cached_property
    def notes(self) -> Mapping[str, Any]:
        """Notes that have the same value for all adapters."""
        first, *others = (folder.notes for folder in self.folders.values())
        return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

    @cached_property
    def quantization(self) -> Quantization | None:
        """Quantization of the base in training; None: it was not quantized by peftly.

        Raises:
            AdapterError: the note has an unknown value.
        """
        return quantization_in(self.notes, self.path)

    @cached_property
    def row_format(self) -> RowFormat | None:
        """Row format of the training data; None where no note names one.

        Raises:
            AdapterError: a value in the note has a wrong type.
            DataError: the note is incomplete, or was written by a later version.
        """
        noted = self.notes.get(ROW_FORMAT)
        if not noted:
            return None
        labels = noted.get("labels", [])
        texts = [noted.get(key) or "" for key in ("kind", "template", "target", "pair", "chat_template")]
        if not isinstance(labels, list) or not all(isinstance(text, str) for text in (*texts, *labels)):
            raise AdapterError(f"{self.path / NOTES} is damaged: {ROW_FORMAT} is {escaped(noted)}")
        return RowFormat.from_dict(noted)

    @property
    def chat_template(self) -> str | None:
        """Chat template that the training set; None: the base's own."""
        noted = self.notes.get(ROW_FORMAT)
        template = noted.get("chat_template") if isinstance(noted, Mapping) else None
        return template if isinstance(template, str) else None


AdapterSource = str | Path | AdapterSet
"""Adapters to open: an adapter folder, a folder of adapters that were saved together, a run folder (its `adapter` is
opened), the Hub id of an adapter (which is downloaded), or adapters that are open already."""


def open_adapters(source: AdapterSource, base: str | None = None) -> AdapterSet:
    """Find adapters and read their JSON files, each once.

    Args:
        source: adapters.
        base: their base, where it is not the one that their files name, or has moved.

    Raises:
        AdapterError: the source holds no adapter; an adapter is damaged or of an unknown type; or of several adapters
            that were saved together, some are missing or were saved at another time.
    """
    if isinstance(source, AdapterSet):
        return source.over(base)
    check_source(source)
    notes_of = cache(read_notes)  # the search below reads notes, and so does `AdapterFolder.read`
    path = Path(source)
    for folder in (path, path / "adapter"):
        recover(folder)
        if adapters := _adapters_in(folder, notes_of):
            return AdapterSet(str(source), folder, MappingProxyType(adapters)).over(base)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise no_adapter(path)
    folder = _downloaded(str(source), "")
    if not (folder / CONFIG).is_file():  # adapters that were saved together have folders of their own
        folder = _downloaded(str(source), "*/")
    if (folder / CONFIG).is_file() and not (folder / TENSORS).is_file():
        raise no_tensors(folder, str(source))
    if not (adapters := _adapters_in(folder, notes_of)):
        raise AdapterError(f"{source} is no folder here, and on the Hub it is no adapter: it has no {CONFIG}")
    return AdapterSet(str(source), folder, MappingProxyType(adapters)).over(base)


def _downloaded(source: str, prefix: str) -> Path:
    """Return the folder of an adapter from the Hub, with the files whose paths begin with the pattern `prefix`.

    Raises:
        AdapterError: the Hub has no such repository, or cannot be reached.
    """
    names = (*ADAPTER_FILES, *TOKENIZER_FILES)
    try:
        return Path(snapshot_download(source, allow_patterns=[f"{prefix}{name}" for name in names]))
    except Exception as error:
        raise not_fetched(source, error) from error


def not_fetched(source: str, error: Exception) -> AdapterError:
    """Return the error for an adapter that is no folder, and that the Hub did not give.

    Args:
        source: path or Hub id, as it was typed.
        error: error of the Hub's client.
    """
    reason = str(error).strip().splitlines()[0].removeprefix("Got: ")
    return AdapterError(f"{source} is no folder (looked from {Path.cwd()}), and the Hub did not give it: {reason}")


def check_source(source: object) -> None:
    """Do nothing for the path or the Hub id of an adapter.

    Raises:
        AdapterError: the argument is something else, such as a model.
    """
    if not isinstance(source, str | PathLike):
        raise AdapterError(
            f"give the folder, run or Hub id of an adapter, not a {type(source).__name__}; peftly.save_adapter writes "
            "the adapters of a model to a folder"
        )


def open_compatible_adapters(sources: Iterable[AdapterSource], base: str | None = None) -> dict[str, AdapterSet]:
    """Open adapters that are to work on one base.

    Args:
        sources: at least one source, each as `open_adapters` takes it.
        base: as for `open_adapters`.

    Returns:
        The adapters by the name of their source, as the user wrote it.

    Raises:
        AdapterError: a source holds no adapter or is named twice, or the adapters have different requirements.
    """
    opened: dict[str, AdapterSet] = {}
    for source in sources:
        adapters = open_adapters(source, base)
        same = next((name for name, other in opened.items() if other.path.resolve() == adapters.path.resolve()), None)
        if same is not None:
            raise AdapterError(f"{same} and {adapters.source} are one adapter, {adapters.path}; name each once")
        opened[adapters.source] = adapters
    first, *others = opened
    requirements = opened[first].requirements
    for other in others:
        if opened[other].requirements != requirements:
            raise AdapterError(f"{first} is for {requirements}, and {other} for {opened[other].requirements}")
        if opened[other].quantization != opened[first].quantization:
            raise AdapterError(f"{first} and {other} were not trained over the same quantisation of their base")
    return opened


def correcting_adapter(opened: Iterable[AdapterSet]) -> Path | None:
    """Return the folder of the first adapter that corrects the quantization error of its base; None: none does.

    Such an adapter fits only the quantized base that it was trained over.
    """
    folders = (folder for adapters in opened for folder in adapters.folders.values())
    return next((folder.path for folder in folders if folder.method.corrects_quantization), None)


def adapter_names(opened: Mapping[str, AdapterSet]) -> list[str]:
    """Return the name of each adapter for people: its source, with its own name behind it if the source has several."""
    return [
        source if len(adapters.folders) == 1 else f"{source}/{name}"
        for source, adapters in opened.items()
        for name in adapters.folders
    ]


def check_number_of_weights(weights: Sequence[float] | None, names: Sequence[str]) -> None:
    """Do nothing if there is a weight for each adapter, or none at all.

    Raises:
        ConfigError: there are more or fewer weights than adapters.
    """
    if weights is not None and len(weights) != len(names):
        count = "1 adapter" if len(names) == 1 else f"{len(names)} adapters"
        raise ConfigError(f"weights: {len(weights)} were given for {count} ({', '.join(names)})")


def names_saved_together(folder: Path, notes_of: _ReadNotes = read_notes) -> dict[str, list[str]]:
    """Return, for each adapter in `folder` that was not saved alone, the names of all adapters of the same call.

    Raises:
        AdapterError: the notes of an adapter cannot be read, or name no such adapters.
    """
    noted = {name: notes_of(folder / name).get(TOGETHER) for name in _folders_with_adapter(folder)}
    for name, names in noted.items():
        are_strings = isinstance(names, list) and all(isinstance(other, str) for other in names)
        if names and not (are_strings and name in names and len(set(names)) == len(names)):
            raise AdapterError(f"{folder / name / NOTES} is damaged: {TOGETHER} is {escaped(repr(names))}")
    return {name: names for name, names in noted.items() if names}


def _adapters_in(folder: Path, notes_of: _ReadNotes) -> dict[str, AdapterFolder]:
    """Return the adapters in a folder, in the order in which they were attached; empty if there is none.

    Adapters in folders of their own that were not saved together, such as the steps of a run, are not opened.
    """
    if (folder / CONFIG).is_file():
        return {"default": AdapterFolder.read(folder, notes_of(folder))}
    together = names_saved_together(folder, notes_of)
    if not together:
        return {}
    first, names = next(iter(together.items()))
    odd = next((name for name in together if together[name] != names), None)
    if odd is not None:
        raise AdapterError(
            f"{folder} holds adapters that were not saved together: {first} was saved with "
            f"{escaped(', '.join(names))}, and {odd} with {escaped(', '.join(together[odd]))}; save them again, or "
            "open one of these folders"
        )
    present = _folders_with_adapter(folder)
    missing = [name for name in names if name not in present]
    if missing:
        raise AdapterError(
            f"{folder} lacks {escaped(', '.join(missing))}, saved together with {first}; save them again, or open one "
            "alone"
        )
    return {name: AdapterFolder.read(folder / name, notes_of(folder / name)) for name in names}


def _folders_with_adapter(folder: Path) -> list[str]:
    """Return the names of the folders that hold an adapter. No adapter has a dot in its name; half-written files do."""
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if "." not in path.parent.name)


def _shown(value: object) -> str:
    return escaped(list(value) if isinstance(value, tuple) else value)
