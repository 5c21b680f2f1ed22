"""Open the model of a run, of an ensemble, or an untouched base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.adapters import AdapterSet, load, load_adapter, open_adapters
from peftly.data import RowFormat
from peftly.errors import AdapterError
from peftly.models import load_base
from peftly.runs.config import RunConfig, one_run
from peftly.runs.folder import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.evaluation import Vote

__all__ = ["OpenEnsemble", "OpenRun", "open_base", "open_ensemble", "open_run"]


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
    config = _run_config(spec)
    return _open(_adapters_of(spec, base), config, name)


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
    folder = Path(spec)
    config = read_config(folder)
    if not isinstance(config, RunConfig) or config.ensemble is None:
        return None
    members = {name: _adapters_of(str(folder / name), base) for name in config.parts()}
    first, *others = members
    for name in others:
        if members[name].row_format != members[first].row_format:
            raise AdapterError(f"{folder}: {name} was trained with another row format than {first}: they cannot vote")
    opened = _open(members[first], _run_config(str(folder / first)), first)
    for name in others:
        load_adapter(opened.model, members[name], name=name)
    return OpenEnsemble(opened, (first, *others), config.ensemble.vote)


def open_base(spec: str) -> OpenRun:
    """Open an untouched base.

    Args:
        spec: base as `load_base` takes it.
    """
    base = load_base(spec)
    return OpenRun(base.model, base.tokenizer)


def _run_config(spec: str) -> RunConfig | None:
    config = read_config(Path(spec))
    return None if config is None else one_run(config, spec)


def _adapters_of(spec: str, base: str | None) -> AdapterSet:
    folder = Path(spec)
    if (folder / "config.yaml").is_file() and not (folder / "adapter").is_dir():
        raise AdapterError(
            f"{spec}: this run has saved no adapter yet: it is still in training, or was stopped before that"
        )
    return open_adapters(spec, base)


def _open(adapters: AdapterSet, config: RunConfig | None, name: str) -> OpenRun:
    settings: dict[str, Any] = {}
    if config is not None:  # the adapter itself records the quantization
        settings = {key: getattr(config, key) for key in ("dtype", "device", "device_map")}
    base = load(adapters, name=name, **settings)
    return OpenRun(base.model, base.tokenizer, adapters.row_format, config)
