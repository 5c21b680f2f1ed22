"""The checkpoints of a stopped run: files with everything that training needs to continue to the byte.

A checkpoint is a safetensors file. One tensor holds bytes of JSON, which describe the state as nested values and refer
to the other tensors by name. Nothing is pickled, so that opening a checkpoint runs no code.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peftly.data import EncodedExample, record_bytes
from peftly.errors import ConfigError, TrainingError
from peftly.training.config import TrainConfig
from peftly.utils import delete_file, replacing_file, write_tensors

__all__ = [
    "check_same_run",
    "checkpoint_files",
    "computes_with",
    "digest",
    "load_optimizer",
    "random_states",
    "read_checkpoint",
    "read_state",
    "set_random_states",
    "write_checkpoint",
    "write_state",
]

FORMAT = 3
"""Version of the file format."""

_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
_TREE = "tree"
_ADVICE = "continue with the settings and the data that the run was started with, or train from the beginning"


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    found = {file: _NAME.fullmatch(file.name) for file in folder.glob("checkpoint-*.safetensors")}
    steps = {file: int(match[1]) for file, match in found.items() if match}
    return sorted(steps, key=lambda file: steps[file], reverse=True)


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int) -> None:
    """Write a checkpoint. When it is on the disk, delete all but the last `keep` checkpoints.

    Args:
        folder: existing folder of the run.
        step: number of updates so far.
        state: state of the training.
        keep: number of checkpoints that stay.

    Raises:
        OSError: the disk is full, or the folder is not writable; the earlier checkpoints are as they were.
    """
    file = folder / f"checkpoint-{step}.safetensors"
    write_state(file, state)
    files = checkpoint_files(folder)
    newest = files.index(file)
    for other in (*files[:newest], *files[newest + keep :]):  # a later one was damaged, or this run would not be here
        delete_file(other)


def read_checkpoint(folder: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the state in the newest checkpoint that is not damaged; None if there is no checkpoint.

    Args:
        folder: folder of the run.
        note: function that receives a line about each damaged checkpoint.

    Raises:
        TrainingError: all checkpoints are damaged, or have the format of another version of peftly.
    """
    problems: list[TrainingError] = []
    former = folder / "checkpoint.safetensors"  # of versions with one checkpoint; `read_state` refuses it
    files = checkpoint_files(folder) or ([former] if former.is_file() else [])
    for file in files:
        try:
            state = read_state(file)
            _check_jobs(file, state)
        except TrainingError as error:
            problems.append(error)
            continue
        for problem in problems:
            note(f"{problem}; continuing from {file.name}")
        return state
    if problems:
        names = ", ".join(file.name for file in files)
        raise TrainingError(f"{problems[0]}; to train from the beginning, delete {names}")
    return None


def _check_jobs(file: Path, state: Mapping[str, Any]) -> None:
    """Refuse a state without jobs. The other parts of a state are checked when they are loaded."""
    jobs = state.get("jobs")
    if not isinstance(jobs, Mapping) or not all(
        isinstance(job, Mapping) and type(job.get("examples_per_step")) is int and job["examples_per_step"] > 0
        for job in jobs.values()
    ):
        raise TrainingError(f"{file} is damaged (it holds no state of a training)")


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state to a file. The file is complete and on the disk before it replaces an older one.

    Args:
        file: file to write; its folder exists.
        state: dicts, lists and tuples of tensors and JSON values; NaN and infinity are allowed.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps({"format": FORMAT, "state": _to_json(state, tensors)})
    tensors[_TREE] = torch.frombuffer(bytearray(tree, "utf-8"), dtype=torch.uint8)
    with replacing_file(file) as scratch:
        write_tensors(scratch, tensors, {"sha256": _sha256(tensors)})


def read_state(file: Path) -> dict[str, Any]:
    """Return the state in a file of `write_state`; tuples have become lists.

    Raises:
        TrainingError: the file cannot be read, is damaged, or has the format of another version of peftly.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("sha256")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- it is no dict
    except OSError as error:
        raise TrainingError(f"cannot read {file}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainingError(f"{file} is damaged ({error})") from error
    if _TREE not in tensors or _sha256(tensors) != expected:
        raise TrainingError(f"{file} is damaged (its contents do not match their hash)")
    try:
        tree = json.loads(bytes(tensors[_TREE].numpy()))
        version, state = tree["format"], _from_json(tree["state"], tensors) if tree["format"] == FORMAT else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(f"{file} is damaged (it holds no state of a training)") from error
    if version != FORMAT:
        raise TrainingError(f"{file} has format {version!s:.20}, and this version of peftly reads {FORMAT}")
    if not isinstance(state, dict):
        raise TrainingError(f"{file} is damaged (it holds no state of a training)")
    return state


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(f"{name} ".encode())
        sha256.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value for JSON, and add its tensors to `tensors` under the names that replace them."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy, since safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs, since keys may be numbers
        return {"pairs": [[_to_json(key, tensors), _to_json(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_json(inner, tensors) for inner in value]
    return value


def _from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `_to_json` was given."""
    if isinstance(value, list):
        return [_from_json(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {_from_json(key, tensors): _from_json(inner, tensors) for key, inner in value["pairs"]}


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all random generators that training may draw from."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    keys = {**numpy["state"], "key": numpy["state"]["key"].tolist()}
    states = {"python": random.getstate(), "numpy": {**numpy, "state": keys}, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set all random generators to the states that `random_states` returned."""
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    keys = {**states["numpy"]["state"], "key": np.array(states["numpy"]["state"]["key"], dtype=np.uint32)}
    np.random.set_state({**states["numpy"], "state": keys})
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


def digest(examples: Iterable[EncodedExample]) -> str:
    """Return a hash of encoded examples, which depends on their order."""
    sha256 = hashlib.sha256()
    for data in record_bytes(examples):
        sha256.update(data)
    return sha256.hexdigest()


def check_same_run(now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Do nothing if two states of an `AdapterJob` are of the same run.

    Args:
        now: `AdapterJob.state_dict` of the run that is to continue.
        saved: the same in the checkpoint.

    Raises:
        ConfigError: the states are of different runs.
    """
    for key, value in now["config"].items():
        # A setting that the version of the checkpoint did not have had no effect, as its default has none.
        before = saved["config"].get(key, TrainConfig.model_fields[key].default)
        if value != before:
            raise ConfigError(f"the checkpoint is of a run with train.{key} {before}, and now it is {value}; {_ADVICE}")
    for split, digest_now, digest_saved in zip(
        ("training", "validation"), now["examples"], saved["examples"], strict=True
    ):
        if digest_now != digest_saved:
            raise ConfigError(f"the checkpoint is of a run on other {split} examples; {_ADVICE}")
    if now["learning_rates"] != saved["learning_rates"]:
        raise ConfigError(f"the checkpoint is of a run with other learning rates; {_ADVICE}")
    _check_same_methods(json.loads(json.dumps(now["methods"])), saved["methods"])  # in JSON tuples are lists
    shapes, saved_shapes = (
        {name: value.shape for name, value in state["parameters"].items()} for state in (now, saved)
    )
    if shapes != saved_shapes:
        different = sorted(name for name in shapes | saved_shapes if shapes.get(name) != saved_shapes.get(name))
        raise ConfigError(f"the checkpoint is of a run that trained other weights ({different[0]}); {_ADVICE}")


def _check_same_methods(now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare the settings of the methods of two runs, which are named in the error."""
    names, saved_names = ([settings["name"] for settings in methods.values()] for methods in (now, saved))
    if names != saved_names or list(now) != list(saved):
        raise ConfigError(
            f"the checkpoint is of a run of other methods: {', '.join(saved_names)}, not {', '.join(names)}; {_ADVICE}"
        )
    for adapter, settings in now.items():
        for key, value in settings.items():
            if value != saved[adapter].get(key):
                setting, before = f"{settings['name']}.{key}", saved[adapter].get(key)
                raise ConfigError(
                    f"the checkpoint is of a run with {setting} {before}, and now it is {value}; {_ADVICE}"
                )


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's `state_dict` in the dtypes that were saved; torch would use those of the parameters."""
    optimizer.load_state_dict({**state})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def computes_with(device: torch.device) -> dict[str, Any]:
    """Return the parts of the environment that the last digits of a step depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else torch.get_device_module(device).get_device_name(device),
    }
