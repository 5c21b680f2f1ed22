"""All that a stopped run needs to go on as if it had not been stopped, in one file.

It is a safetensors file: the tensors, and among them one of bytes, which are JSON and say where each of them belongs.
No pickle: opening it runs nothing.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.errors import ConfigError

if TYPE_CHECKING:
    pass

import hashlib
import os
import random
from array import array
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftly.data import EncodedExample
from peftly.errors import TrainingError

__all__ = [
    "check_same_run",
    "computes_with",
    "digest",
    "fingerprint",
    "load_optimizer",
    "random_states",
    "read_state",
    "set_random_states",
    "write_state",
]

FORMAT = 2
_TREE = "tree"
_ADVICE = "go on as it was begun, or begin anew"


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state. The file is complete, and on the disk, before it takes the place of the one before.

    Args:
        file: what is replaced; its folder exists.
        state: dicts, lists and tuples of tensors and of what JSON has a word for, NaN and infinity included.

    Raises:
        OSError: there is no room, or no permission.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps({"format": FORMAT, "state": _packed(state, tensors)})
    tensors[_TREE] = torch.frombuffer(bytearray(tree, "utf-8"), dtype=torch.uint8)
    metadata = {"sha256": _sha256(tensors)}
    scratch = Path(tempfile.mkdtemp(prefix=f".{file.name}-", dir=file.parent))
    try:
        try:
            save_file(tensors, scratch / file.name, metadata=metadata)
        except SafetensorError as error:  # which a full disk comes as
            raise OSError(str(error)) from error
        with (scratch / file.name).open("rb") as written:
            os.fsync(written.fileno())
        (scratch / file.name).replace(file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_state(file: Path) -> dict[str, Any]:
    """Return what `write_state` has written; tuples have become lists.

    Raises:
        TrainingError: the file is damaged, or of another version of peftly.
    """
    advice = "delete it to train from the beginning"
    try:
        with safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("sha256")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- it is no dict
    except OSError as error:
        raise TrainingError(f"cannot read {file}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainingError(f"{file} is damaged ({error}); {advice}") from error
    if _TREE not in tensors or _sha256(tensors) != expected:
        raise TrainingError(f"{file} is damaged (it is not what was written); {advice}")
    tree = json.loads(bytes(tensors[_TREE].numpy()))
    if tree["format"] != FORMAT:
        raise TrainingError(f"{file} has format {tree['format']}, and this version of peftly reads {FORMAT}; {advice}")
    unpacked: dict[str, Any] = _unpacked(tree["state"], tensors)
    return unpacked


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} ".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON has it, where a tensor is the name under which it is in `tensors` from now on."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy, since several may lie in the same memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs, for its keys may be numbers
        return {"pairs": [[_packed(key, tensors), _packed(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(inner, tensors) for inner in value]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {_unpacked(key, tensors): _unpacked(inner, tensors) for key, inner in value["pairs"]}


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that training may draw from."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    keys = {**numpy["state"], "key": numpy["state"]["key"].tolist()}
    states = {"python": random.getstate(), "numpy": {**numpy, "state": keys}, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where `random_states` found them."""
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    keys = {**states["numpy"]["state"], "key": np.array(states["numpy"]["state"]["key"], dtype=np.uint32)}
    np.random.set_state({**states["numpy"], "state": keys})
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)


def digest(rows: Iterable[EncodedExample]) -> str:
    """Return a number that other rows, or the same in another order, do not have."""
    found = hashlib.sha256()
    for row in rows:
        parts: Sequence[Sequence[int] | None] = (
            row.input_ids,
            row.trained,
            None if row.label is None else [row.label],
            row.tags,
            row.answer,
            row.token_type_ids,
            row.prompt_positions,
        )
        for part in parts:
            found.update(b"-" if part is None else b"%d:" % len(part) + array("q", part).tobytes())
    return found.hexdigest()


def check_same_run(own: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Do nothing if the states `own` and `then` of a adapter_job are of the same run.

    Raises:
        ConfigError: they are not.
    """
    for key, value in own["config"].items():
        if value != then["config"].get(key):
            raise ConfigError(
                f"the checkpoint is of a run with train.{key} {then['config'].get(key)}, and now it is {value}; "
                f"{_ADVICE}"
            )
    for key, what in (
        ("rows", "on other rows"),
        ("rates", "with other learning rates"),
        ("rows_per_step", "with other batches, or on other processes"),
        ("methods", "of other methods, or with other settings of them"),
    ):
        # As JSON has it, which knows no tuples.
        if json.loads(json.dumps(own[key])) != then[key]:
            raise ConfigError(f"the checkpoint is of a run {what}; {_ADVICE}")
    shapes, others = ({name: value.shape for name, value in one["parameters"].items()} for one in (own, then))
    if shapes != others:
        strange = sorted(name for name in shapes | others if shapes.get(name) != others.get(name))
        raise ConfigError(f"the checkpoint is of a run that trained other weights ({strange[0]}); {_ADVICE}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimizer where its `state_dict` was `state`: in the dtypes of then, where torch takes the weights'."""
    optimizer.load_state_dict({**state})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, values in state["state"].items():
        own = optimizer.state[parameters[place]]
        for name, value in values.items():
            if isinstance(value, Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)


def fingerprint(model: Any) -> dict[str, Any]:
    """Return what tells a base from others: its dtype, and a few numbers of each of its frozen tensors."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not parameter.is_meta:
            found.update(f"{name} {tuple(parameter.shape)}".encode())
            found.update(parameter.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return {"dtype": str(model.dtype), "digest": found.hexdigest()}


def computes_with(device: torch.device) -> dict[str, Any]:
    """Return what the last digits of a step depend on, beside the step."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else torch.get_device_module(device).get_device_name(device),
    }


CHECKPOINT = "checkpoint.safetensors"
