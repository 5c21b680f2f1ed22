"""Launches are checked, and the first process that fails reports the error."""

import pytest
from torch.distributed import HashStore

from peftly import ConfigError
from peftly.training import processes

DEFAULTS = {  # of `accelerate launch --multi_gpu --num_processes 2`
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_plain_launch_is_accepted():
    processes.check_launch({})
    processes.check_launch(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("WORLD_SIZE", "two"),
    ],
)
def test_what_a_launch_asks_for_in_vain_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name}={value}"):
        processes.check_launch(DEFAULTS | {name: value})


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_cannot_find_each_other_are_refused(name):
    variables = {key: value for key, value in DEFAULTS.items() if key != name}
    with pytest.raises(ConfigError, match=f"{name} is not set; start them with torchrun"):
        processes.check_launch(variables)


def test_launchers_that_start_no_group_are_refused():
    with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_SIZE=2: processes of mpirun"):
        processes.check_launch({"OMPI_COMM_WORLD_SIZE": "2"})
    alone = {name: value for name, value in DEFAULTS.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    with pytest.raises(ConfigError, match="was to start several processes and started one"):
        processes.check_launch(alone)


def test_the_first_process_that_fails_reports(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(processes, "_store", HashStore())
    assert [processes.is_first_report() for _ in range(3)] == [True, False, False]


def test_a_broken_connection_is_told_from_other_errors(monkeypatch):
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    assert processes.lost_process(broken) is None  # one process has no connection
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process" in str(processes.lost_process(broken))
    assert processes.lost_process(RuntimeError("shapes differ")) is None
