"""Translation: the file by its command and the script, on a decoder and on an encoder-decoder model."""

import json

import pytest


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_the_yaml_by_its_command(peftly, tiny_llama_folder, task_base, tmp_path, architecture):
    base = tiny_llama_folder if architecture == "llama" else task_base("t5")
    options = ["train.max_steps=3", "train.generation_examples=2", "baselines=false"]
    words = [word for option in options for word in ("--set", option)]
    outcome = peftly("train", "examples/translation.yaml", "--base", base, "--out", tmp_path / "run", *words)
    assert outcome.code == 0, outcome.err
    task = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["task_type"]
    assert task == ("CAUSAL_LM" if architecture == "llama" else "SEQ_2_SEQ_LM")
    outcome = peftly("generate", tmp_path / "run", "--text", "The dog is sleeping.", "--max-new-tokens", 2)
    assert outcome.code == 0, outcome.err


def test_the_script_on_an_encoder_decoder_model(example, task_base, tmp_path):
    found = example("translation").main(str(task_base("t5")), folder=str(tmp_path), epochs=2, learning_rate=0.01)
    assert found["rows"] == 40
    assert found["after"]["loss"] < found["before"]["loss"]
    assert len(found["after"]["answers"]) == 3
