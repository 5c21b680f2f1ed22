"""Image classifier: LoRA and the classifier of a small vision transformer are trained, saved, opened and merged."""

import json

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_script(example, tmp_path):
    found = example("image_classifier").main(str(tmp_path), steps=40)
    assert found["5-9, base"] < 0.05 < found["5-9, with LoRA"]
    assert found["5-9, opened again"] == found["5-9, with LoRA"]
    assert abs(found["5-9, merged"] - found["5-9, with LoRA"]) < 0.01
    assert found["0-4, LoRA switched off"] == found["0-4, base"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["modules_to_save"] == ["classifier"]
