"""The processes of a launch with `torchrun` or `accelerate launch`: their group, and work of the main process alone."""

import hashlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import set_seed
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from peftly.errors import ConfigError, PeftlyError, Stopped, TrainingError
from peftly.training.checkpoint import set_random_states
from peftly.utils import is_main_process

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "check_launch",
    "is_first_report",
    "join_processes",
    "largest",
    "leave_processes",
    "lost_process",
    "num_processes",
    "on_main_process",
    "resume_random_states",
    "saved_examples_per_step",
    "stop_error",
]

TIMEOUT = timedelta(days=1)
"""Time for which processes wait for each other: one may download a base, or evaluate alone. The end of a process is
noticed at once, by the launcher and by the connections that break."""

_TRUE = ("1", "true", "yes", "y", "on")
_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP of accelerate is not supported",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism are not supported",
    "ACCELERATE_USE_TP": "tensor parallelism is not supported",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's launcher is not supported",
}
"""Variables of `accelerate launch` that ask for something which a run does not do, with the reason."""

Result = TypeVar("Result")

_store: Any = None
"""Store through which the processes of the launch find each other, once this process has joined them."""


def num_processes() -> int:
    """Return how many processes the launcher has started: `WORLD_SIZE`."""
    return _number(os.environ, "WORLD_SIZE", 1)


def check_launch(variables: Mapping[str, str]) -> None:
    """Refuse what the launcher asks for and a run does not do.

    Args:
        variables: environment variables of the process.

    Raises:
        ConfigError: a variable asks for an engine, a precision or a compiler that is not used, or a variable that
            several processes need is missing.
    """
    instead = "launch with torchrun or --multi_gpu, and set train.fsdp: true if the base is too large for one GPU"
    for name, reason in _UNSUPPORTED.items():
        if variables.get(name, "").lower() in _TRUE:
            raise ConfigError(f"{name}={variables[name]}: {reason}; {instead}")
    precision = variables.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision.lower() != "no":
        raise ConfigError(
            f"ACCELERATE_MIXED_PRECISION={precision}: a run computes in the dtype of its base; launch with "
            "--mixed_precision no, and set dtype: bfloat16 (or float16)"
        )
    compiler = variables.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise ConfigError(
            f"ACCELERATE_DYNAMO_BACKEND={compiler}: models are not compiled; launch with --dynamo_backend no"
        )
    accumulation = variables.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise ConfigError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accumulation}: set train.gradient_accumulation_steps instead"
        )
    _check_process_count(variables)


def _check_process_count(variables: Mapping[str, str]) -> None:
    """Refuse a launch of several processes that do not know of each other."""
    torchrun = "start them with torchrun --nproc-per-node N -m peftly train …"
    if _number(variables, "WORLD_SIZE", 1) > 1:
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in variables:
                raise ConfigError(f"WORLD_SIZE={variables['WORLD_SIZE']}, and {name} is not set; {torchrun}")
        return
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if _number(variables, name, 1) > 1:
            raise ConfigError(f"{name}={variables[name]}: processes of mpirun are not supported; {torchrun}")
    is_alone = "ACCELERATE_MIXED_PRECISION" in variables and "WORLD_SIZE" not in variables
    if is_alone and "MASTER_ADDR" in variables:
        raise ConfigError(
            f"accelerate launch was to start several processes and started one, as it does with --cpu; {torchrun}"
        )


def join_processes() -> None:
    """Join the group of all processes of the launch, unless this process has; a single process needs no group.

    Raises:
        ConfigError: the launcher asks for something that a run does not do (see `check_launch`), or this machine has
            fewer GPUs than processes.
    """
    global _store
    check_launch(os.environ)
    if num_processes() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.accelerator.is_available():
        # Objects are exchanged through the CPU; the model's tensors through the library of its device.
        local, device = _number(os.environ, "LOCAL_RANK", 0), str(torch.accelerator.current_accelerator())
        if local >= torch.accelerator.device_count():
            raise ConfigError(
                f"LOCAL_RANK={local}: this machine has {torch.accelerator.device_count()} GPUs; start at most one "
                "process for each of them (--nproc-per-node)"
            )
        torch.accelerator.set_device_index(local)  # the base is loaded there
        backend = f"cpu:gloo,{device}:{dist.get_default_backend_for_device(device)}"
    _store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=30)))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=TIMEOUT)


def leave_processes() -> None:
    """Leave the group of `join_processes`, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_main_process(function: Callable[[], Result]) -> Result:
    """Call a function on the main process only; the other processes wait for its result.

    Args:
        function: function without arguments. Its result can be pickled.

    Returns:
        The result, on every process.

    Raises:
        Exception: the error of the function, on every process.
    """
    if num_processes() == 1 or not dist.is_initialized():
        return function()
    outcome: list[object] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except Exception as error:
            # Other processes may lack the modules of an unknown error.
            outcome[1] = error if isinstance(error, PeftlyError | OSError) else TrainingError(str(error))
            dist.broadcast_object_list(outcome)
            raise
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def largest(values: Sequence[float]) -> list[float]:
    """Return the largest of each value over all processes, so that all of them decide alike.

    Args:
        values: as many values on each process.
    """
    if num_processes() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return list(tensor.tolist())


def stop_error(number: int) -> KeyboardInterrupt:
    """Return the error to raise for a stop signal that all processes have agreed on."""
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return Stopped(f"stopped by {signal.Signals(number).name}")


def is_first_report() -> bool:
    """Return whether this process is the first one to ask, and so reports the error that ends the run.

    An error ends all processes, and most of them fail only because another one has.
    """
    if num_processes() == 1:
        return True
    if _store is None:
        return is_main_process()
    try:
        return bool(_store.add("peftly/reports", 1) == 1)
    except RuntimeError:  # the process that held the store is gone, and cannot report
        return True


def lost_process(error: BaseException) -> TrainingError | None:
    """Return the error to report if `error` says that a connection to another process broke; None for other errors."""
    if num_processes() == 1 or not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
        return None
    return TrainingError("another process of this run ended, so the run stops")


def saved_examples_per_step(state: Mapping[str, Any] | None, job: str | None) -> int | None:
    """Return how many examples a step of a job has in a checkpoint; None without one.

    The number is part of the run: a run that continues on other processes distributes the same examples among them.

    Args:
        state: checkpoint, or None.
        job: name of the job.
    """
    saved = {} if state is None else state["jobs"].get(str(job), {})
    count: int | None = saved.get("examples_per_step")
    return count


def resume_random_states(
    states: Sequence[Mapping[str, Any]], accelerator: "Accelerator", *, seed: int, step: int
) -> str | None:
    """Continue with the random generators of a checkpoint, or seed them if it was written by other processes.

    Args:
        states: states of the random generators of each process, as `random_states` returned them.
        accelerator: accelerator of the run.
        seed: seed of the run.
        step: number of updates before the checkpoint.

    Returns:
        A note if the number of processes has changed; None otherwise.
    """
    now = accelerator.num_processes
    if len(states) == now:
        set_random_states(states[accelerator.process_index], accelerator.device)
        return None
    source = hashlib.sha256(f"{seed} {step} {accelerator.process_index}".encode()).digest()
    set_seed(int.from_bytes(source[:4], "big"))
    saved, present = (f"{count} process{'es' * (count > 1)}" for count in (len(states), now))
    return (
        f"the checkpoint has the random generators of {saved}, and the run goes on in {present}: "
        "dropout draws other masks"
    )


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    """Return the number in an environment variable."""
    text = variables.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text} is not a number") from error
