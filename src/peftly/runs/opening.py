"""Open the model of a run, of an ensemble, or an untouched base."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.adapters import ADAPTER_FILES, AdapterSet, load, load_adapter, open_adapters
from peftly.data import RowFormat
from peftly.errors import AdapterError
from peftly.models import load_base
from peftly.runs.config import RunConfig, one_run
from peftly.runs.folder import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.evaluation import Vote

__all__ = ["FoundRun", "OpenEnsemble", "OpenRun", "find_run", "open_base", "open_ensemble", "open_run"]


class OpenRun(NamedTuple):
    """A model ready for use, as `open_run` returns it.

    Attributes:
        model: base with its adapter, or an untouched base.
        tokenizer: tokenizer of the model.
        row_format: conversion of a row of data into text; None if the adapter does not record one.
        config: configuration of the run; None if the model was not opened from a run folder.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    row_format: RowFormat | None = None
    config: RunConfig | None = None


class OpenEnsemble(NamedTuple):
    """The members of an ensemble, ready for use.

    Attributes:
        opened: model with the adapters of all members.
        members: names of the members.
        vote: rule by which the members decide on a label.
    """

    opened: OpenRun
    members: tuple[str, ...]
    vote: "Vote"


class FoundRun(NamedTuple):
    """A run, an adapter or an ensemble whose files were found and read, without its base.

    Attributes:
        adapters: adapters by the name that they get in the model: one, or each member of an ensemble.
        config: configuration of the run, or of the first member; None if it was not found in a run folder.
        vote: rule by which the members of an ensemble decide on a label; None: it is no ensemble.
    """

    adapters: Mapping[str, AdapterSet]
    config: RunConfig | None
    vote: "Vote | None" = None

    @property
    def first(self) -> AdapterSet:
        """The adapter, or that of the first member."""
        return next(iter(self.adapters.values()))

    @property
    def row_format(self) -> RowFormat | None:
        """Row format of the training data; None if no adapter file names one."""
        return self.first.row_format

    def digest(self) -> str:
        """Return a digest of the files of the adapters, which changes with any training."""
        digest = hashlib.sha256()
        for name, adapters in self.adapters.items():
            for folder in adapters.folders.values():
                files = (folder.path / file for file in ADAPTER_FILES if not file.endswith(".md"))
                for file in filter(Path.is_file, files):
                    digest.update(f"{name}/{file.name}\n".encode())
                    with file.open("rb") as content:
                        digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def open(self) -> OpenRun:
        """Open the base with the adapters.

        Raises:
            AdapterError: an adapter does not fit the base.
            BaseModelError: the base cannot be found or opened.
        """
        settings: dict[str, Any] = {}
        if self.config is not None:  # the adapter itself records the quantization
            settings = {key: getattr(self.config, key) for key in ("dtype", "device", "device_map")}
        first, *others = self.adapters
        base = load(self.adapters[first], name=first, **settings)
        for name in others:
            load_adapter(base.model, self.adapters[name], name=name)
        return OpenRun(base.model, base.tokenizer, self.row_format, self.config)


def find_run(spec: str, *, name: str = "default", base: str | None = None) -> FoundRun:
    """Find the files of a run, an adapter or an ensemble.

    Args:
        spec: run folder, folder of an ensemble, adapter folder, or Hub id of an adapter.
        name: name of a single adapter in the model.
        base: as for `open_run`.

    Raises:
        AdapterError: there is no adapter, or it is damaged; or a member of an ensemble was trained again with another
            row format.
        ConfigError: the folder holds several runs that were trained side by side.
    """
    folder = Path(spec)
    config = read_config(folder)
    if not isinstance(config, RunConfig) or config.ensemble is None:
        return FoundRun({name: _adapters_of(spec, base)}, None if config is None else one_run(config, spec))
    members = {member: _adapters_of(str(folder / member), base) for member in config.parts()}
    first, *others = members
    for member in others:
        if members[member].row_format != members[first].row_format:
            raise AdapterError(f"{folder}: {member} was trained with another row format than {first}: they cannot vote")
    own = read_config(folder / first)
    return FoundRun(members, None if own is None else one_run(own, folder / first), config.ensemble.vote)


def open_run(spec: str, *, name: str = "default", base: str | None = None) -> OpenRun:
    """Open a trained adapter with its base.

    Args:
        spec: run folder, adapter folder, or Hub id of an adapter.
        name: name of the adapter in the model.
        base: base of the adapter, where it is not the one that the adapter names, or has moved.

    Returns:
        The adapted model with its tokenizer, row format and configuration. A run folder determines dtype and device
        of the model, too.

    Raises:
        AdapterError: there is no adapter, or it is damaged or not usable here.
        BaseModelError: the base of the adapter cannot be found or opened.
        ConfigError: the folder holds several runs that were trained side by side.
    """
    config = read_config(Path(spec))
    if config is not None:
        one_run(config, spec)
    return find_run(spec, name=name, base=base).open()


def open_ensemble(spec: str, *, base: str | None = None) -> OpenEnsemble | None:
    """Open the members of an ensemble on one base, each under its name.

    Args:
        spec: folder of the ensemble.
        base: as for `open_run`.

    Returns:
        The ensemble; None if `spec` is any other run or adapter.

    Raises:
        AdapterError: a member is missing, or was trained again with another row format.
    """
    config = read_config(Path(spec))
    if not isinstance(config, RunConfig) or config.ensemble is None:
        return None
    found = find_run(spec, base=base)
    return OpenEnsemble(found.open(), tuple(found.adapters), config.ensemble.vote)


def open_base(spec: str) -> OpenRun:
    """Open an untouched base.

    Args:
        spec: base as `load_base` takes it.
    """
    base = load_base(spec)
    return OpenRun(base.model, base.tokenizer)


def _adapters_of(spec: str, base: str | None) -> AdapterSet:
    folder = Path(spec)
    if (folder / "config.yaml").is_file() and not (folder / "adapter").is_dir():
        raise AdapterError(
            f"{spec}: this run has saved no adapter yet: it is still in training, or was stopped before that"
        )
    return open_adapters(spec, base)
