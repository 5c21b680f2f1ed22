"""The head of a classifier in a run: which states it reads, and the linear probe that it starts from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from peftly.adapters import attached
from peftly.data import Data, Split
from peftly.errors import ConfigError
from peftly.evaluation import Evaluation, HeadName, Probe, choose_probe, evaluate_probe, fit_probes
from peftly.models import (
    TASKS,
    Base,
    Pooling,
    has_new_classifier,
    load_base,
    pooling_of,
    resolve_base,
    starting_weights,
    task_of,
    trained_pooling,
)
from peftly.runs.config import RunConfig
from peftly.runs.launch import loading_settings
from peftly.training import num_processes, on_main_process

__all__ = ["ChosenHead", "choose_head", "open_with_head", "probe_scores", "starting_from"]

_NAMES: dict[HeadName, str] = {
    "own": "the class of transformers",
    "mean": "the mean of the token states",
    "first": "the first token",
}


class ChosenHead(NamedTuple):
    """A base with the head that a run trains.

    Attributes:
        base: the base, opened again where the chosen head is not that of transformers' class.
        head: value of `RunConfig.head` for this head.
        probes: a probe on the states that the head reads, for the data of each run; None: there is none.
    """

    base: Base
    head: str
    probes: tuple[Probe | None, ...]


def open_with_head(config: RunConfig, task: Any, labels: Sequence[str], head: str) -> Base:
    """Open the base of a run with a head for its task.

    Args:
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
        resolve_base(config.base),
        **loading_settings(config),
        device_map=config.device_map,
        quantization=config.quantization,
        task=task,
        labels=labels,
        pooling=pooling,
        seed=config.train.seed,
    )


def choose_head(
    base: Base, runs: Sequence[tuple[RunConfig, Data]], log: Callable[[str], None], *, is_given: bool
) -> ChosenHead:
    """Choose the head of a classifier by linear probes, and open its base with this head.

    Args:
        base: base of the runs, without adapters.
        runs: configuration and data of each run that trains an adapter on the base.
        log: function that receives lines on the choice.
        is_given: whether the caller has opened the base, so that its class stays.

    Raises:
        ConfigError: the runs, or a run and the given base, have different heads.
    """
    wanted = runs[0][0].head  # of all runs
    present = pooling_of(base.model) or "transformers"
    task = task_of(base.model)
    if wanted not in ("auto", present):
        if is_given or wanted == "transformers":
            raise ConfigError(f"head is {wanted}, but the base has the head {present}; set head: {present}")
        config, data = runs[0]
        base, present = open_with_head(config, task, data.row_format.labels, wanted), wanted
    if task is None or not TASKS[task].is_classification or attached(base.model):
        return ChosenHead(base, wanted, (None,) * len(runs))
    if runs[0][0].train.fsdp and num_processes() > 1:
        log("head: starts from random weights, since a base that will be sharded is not probed")
        return ChosenHead(base, present, (None,) * len(runs))
    is_open = wanted == "auto" and not is_given and has_new_classifier(base.model)
    fitted = _fitted(base, runs, pooled=is_open)
    expected = _expected(runs[0][0]) if is_open and task == "sequence_classification" else "own"
    chosen = [choose_probe(probes, expected) if probes else None for probes in fitted]
    if chosen[0] is not None and has_new_classifier(base.model):
        log(_line(fitted[0], chosen[0], present))
    if not is_open or chosen[0] is None or chosen[0].head == "own":
        return ChosenHead(base, present, tuple(probes.get("own") for probes in fitted))
    config, data = runs[0]
    head: HeadName = chosen[0].head
    opened = open_with_head(config, task, data.row_format.labels, head)
    return ChosenHead(opened, head, tuple(probes[head] for probes in fitted))


def _expected(config: RunConfig) -> HeadName:
    """Return the head that the base of a run was trained for."""
    return trained_pooling(resolve_base(config.base)) or "own"


def _fitted(base: Base, runs: Sequence[tuple[RunConfig, Data]], *, pooled: bool) -> list[dict[HeadName, Probe]]:
    """Return the probes of a base on the training examples of each run, the same on every process."""
    train = runs[0][0].train
    settings = {"batch_size": train.evaluation_batch_size, "pooled": pooled, "seed": train.seed}
    by_data: dict[int, dict[HeadName, Probe]] = {}  # the members of an ensemble share their data
    for _, data in runs:
        if id(data) not in by_data:
            fit = partial(fit_probes, base.model, base.tokenizer, data.train.encoded, **settings)
            by_data[id(data)] = on_main_process(fit)
    return [by_data[id(data)] for _, data in runs]


def _line(probes: Mapping[HeadName, Probe], chosen: Probe, present: str) -> str:
    """Return a line on the choice of a head."""
    names = {**_NAMES, "own": _NAMES[present]} if present in ("mean", "first") else _NAMES  # type: ignore[index]
    scores = ", ".join(f"{names[head]} {100 * probe.accuracy:.1f}%" for head, probe in probes.items())
    kind = "one layer on " if chosen.head != "own" or present != "transformers" else ""
    hint = "; for other tools, train with head: transformers" if kind else ""
    return (
        f"head: {kind}{names[chosen.head]}, starting from a linear probe (cross-validated accuracy of probes on the "
        f"untrained base: {scores}){hint}"
    )


@contextmanager
def starting_from(base: Base, probe: Probe | None) -> Iterator[None]:
    """Let an adapter that is attached inside the block start from a probe, if the head of the base is new."""
    if probe is None or not has_new_classifier(base.model):
        yield
        return
    with starting_weights(base.model, probe.weight, probe.bias):
        yield


def probe_scores(
    base: Base, probe: Probe | None, split: Split | None, data: Data, config: RunConfig
) -> Evaluation | None:
    """Return the scores of a probe on a split; None where there is no probe or no split."""
    if probe is None or split is None:
        return None
    size = config.train.evaluation_batch_size
    return evaluate_probe(base.model, base.tokenizer, probe, split, data.row_format, batch_size=size)
