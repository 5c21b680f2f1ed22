"""The head of a classifier in a run: which states it reads, and the linear probe that it starts from."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from peftly.adapters import attached, use_adapters
from peftly.data import Data
from peftly.errors import ConfigError
from peftly.evaluation import HeadName, Probe, choose_probe, fit_probes
from peftly.injection import copied_parameters, new_modules
from peftly.methods import METHODS
from peftly.models import (
    TASKS,
    Base,
    BaseSpec,
    Pooling,
    classifier_layer,
    has_new_classifier,
    load_base,
    pooling_of,
    resolve_base,
    task_of,
    trained_pooling,
)
from peftly.runs.config import RunConfig
from peftly.runs.launch import loading_settings
from peftly.training import num_processes, on_main_process

__all__ = ["ChosenHead", "choose_head", "open_with_head", "probe_of_next", "start_from"]

_NAMES: dict[HeadName, str] = {
    "own": "the class of transformers",
    "mean": "the mean of the token states",
    "first": "the first token",
}

_BATCH_SIZE = 16
"""Number of examples per forward pass. It is fixed: another number rounds the states differently, and so the start."""


class ChosenHead(NamedTuple):
    """A base with the head that a run trains.

    Attributes:
        base: the base, opened again where the chosen head is not that of transformers' class.
        name: value of `RunConfig.head` for this head.
        probe: probe on the states that the head reads; None: there is none.
    """

    base: Base
    name: str
    probe: Probe | None


def open_with_head(spec: BaseSpec, config: RunConfig, task: Any, labels: Sequence[str], head: str) -> Base:
    """Open the base of a run with a head for its task.

    Args:
        spec: base of the run, as `resolve_base` returns it.
        config: configuration of the run.
        task: task of the head.
        labels: labels of a classifier; empty for other tasks.
        head: value of `RunConfig.head`.

    Raises:
        ConfigError: the head is not for this task.
    """
    pooling: Pooling | None = head if head in ("mean", "first") else None  # type: ignore[assignment]
    if pooling is not None and task != "sequence_classification":
        raise ConfigError(f"head: {head} is for sequence_classification, and the task is {task}; leave it out")
    return load_base(
        spec,
        **loading_settings(config),
        device_map=config.device_map,
        quantization=config.quantization,
        task=task,
        labels=labels,
        pooling=pooling,
        seed=config.train.seed,
    )


def choose_head(base: Base, config: RunConfig, data: Data, log: Callable[[str], None], *, is_given: bool) -> ChosenHead:
    """Choose the head of a classifier by linear probes, and open its base with this head.

    Args:
        base: base of the run, without adapters.
        config: configuration of the run.
        data: data of the run.
        log: function that receives lines on the choice.
        is_given: whether the caller has opened the base, so that its class stays.

    Raises:
        ConfigError: the base is given or has a head of its own, which is not the head in the configuration.
    """
    present: str = pooling_of(base.model) or "transformers"
    task = task_of(base.model)
    if config.head not in ("auto", present):
        raise ConfigError(f"head is {config.head}, but the base has the head {present}; set head: {present}")
    if task is None or not TASKS[task].is_classification or attached(base.model):
        return ChosenHead(base, config.head, None)
    if config.train.fsdp and num_processes() > 1:
        log("head: starts from random weights, since a base that will be sharded is not probed")
        return ChosenHead(base, present, None)
    is_new = has_new_classifier(base.model)
    is_open = config.head == "auto" and not is_given and is_new
    probes = _fit(base, data, pooled=is_open)
    if not probes:
        return ChosenHead(base, present, None)
    spec = resolve_base(config.base) if len(probes) > 1 else None
    expected = (spec and trained_pooling(spec)) or "own"
    probe = choose_probe(probes, expected)
    if is_new:
        log(_line(probes, probe, present, is_expected=probe.head == expected))
    if probe.head == "own" or spec is None:
        return ChosenHead(base, present, probe)
    return ChosenHead(open_with_head(spec, config, task, data.row_format.labels, probe.head), probe.head, probe)


def probe_of_next(base: Base, data: Data, chosen: Probe | None, *, is_same_data: bool) -> Probe | None:
    """Return the probe for another run on a base whose head has been chosen.

    Args:
        base: the base, with the new weights of this run.
        data: data of the run.
        chosen: probe of the first run.
        is_same_data: whether both runs have the same data.
    """
    layer = classifier_layer(base.model)
    if chosen is None or layer is None:
        return None
    reads_new_layers = pooling_of(base.model) is None and set(new_modules(base.model)) - {layer[0]}
    if is_same_data and not reads_new_layers:
        return chosen
    return _fit(base, data)["own"]


def _fit(base: Base, data: Data, **options: bool) -> dict[HeadName, Probe]:
    """Return the probes of a base on the training examples of a run, the same on every process; see `fit_probes`."""
    encoded = data.train.encoded
    return on_main_process(partial(fit_probes, base.model, base.tokenizer, encoded, batch_size=_BATCH_SIZE, **options))


def _line(probes: Mapping[HeadName, Probe], chosen: Probe, present: str, *, is_expected: bool) -> str:
    """Return a line on the choice of a head."""
    names = {**_NAMES, "own": _NAMES[present]} if present in ("mean", "first") else _NAMES  # type: ignore[index]
    scores = ", ".join(f"{names[head]} {100 * probe.accuracy:.1f}%" for head, probe in probes.items())
    kind = "one layer on " if chosen.head != "own" or present != "transformers" else ""
    reason = ", which its base was trained for" if chosen.head != "own" and is_expected else ""
    hint = "; PEFT cannot load this head, see --head transformers" if kind else ""
    return (
        f"head: {kind}{names[chosen.head]}{reason}, starting from a linear probe (cross-validated accuracy of "
        f"probes on the untrained base: {scores}){hint}"
    )


def start_from(base: Base, names: Sequence[str], data: Data, probe: Probe | None) -> None:
    """Let the head that new adapters train start from a probe, if the files of the base do not contain the head.

    Adapters that change the base before they are trained (virtual tokens, prefixes) change the states that the head
    reads, so another probe is fitted on these.

    Args:
        base: base with the new adapters.
        names: adapters that work together. The first one gets the weights, since others add to the head of the first.
        data: data of the run.
        probe: probe of the base; None: the head starts from the weights that were drawn.
    """
    layer = classifier_layer(base.model)
    if probe is None or layer is None or not has_new_classifier(base.model):
        return
    copies = copied_parameters(base.model, names[0])
    adapters = [attached(base.model)[name] for name in names]
    for adapter in adapters:
        adapter.has_probed_head = True
    methods = [METHODS[adapter.config.name] for adapter in adapters]
    if not all(method.identity_at_init for method in methods):
        with use_adapters(base.model, *names):
            probe = _fit(base, data, adapted=True)["own"]
    _set(copies, layer[0], probe)


def _set(copies: Mapping[str, Tensor], path: str, probe: Probe) -> None:
    """Write a probe into the trained copy of a layer; an adapter that trains no copy of it has none."""
    for name, value in (("weight", probe.weight), ("bias", probe.bias)):
        if value is not None and f"{path}.{name}" in copies:
            copies[f"{path}.{name}"].data.copy_(value)
