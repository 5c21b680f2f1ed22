"""Settings that several processes cannot follow are refused before base and data are opened."""

import pytest

from peftly import ConfigError
from peftly.runs import RunConfig, run
from peftly.runs.launch import check_processes

PATHS = {"base": "no-such-base", "data": {"train": "no-such-file.jsonl"}, "method": {"name": "lora"}}


def test_sharding_needs_several_processes(tmp_path):
    config = RunConfig(**PATHS, out=str(tmp_path / "run"), train={"fsdp": True})
    with pytest.raises(ConfigError, match=r"train\.fsdp .* several processes; start them with torchrun"):
        run(config)


def test_a_quantised_base_is_not_sharded(tmp_path):
    config = RunConfig(**PATHS, out=str(tmp_path / "run"), train={"fsdp": True}, quantization={"kind": "nf4"})
    with pytest.raises(ConfigError, match=r"train\.fsdp shards no quantised base"):
        run(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": "auto"}, "device_map spreads one process"),
        ({"device": "cuda:1"}, "device: cuda:1 is one device"),
        ({"device": "cpu", "train": {"fsdp": True}}, "train.fsdp puts a part of the base"),
    ],
)
def test_devices_of_one_process_are_refused_for_several(settings, message, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=message):
        check_processes(RunConfig(**PATHS, out=str(tmp_path / "run"), **settings), resume=False)
