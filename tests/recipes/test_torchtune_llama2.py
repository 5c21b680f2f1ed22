"""torchtune's Llama-2 job: the settings of the file, a short training, and an answer."""

from pathlib import Path

from peftly.runs.config import one_run
from peftly.runs.config_file import load_config


def test_the_file_has_the_numbers_of_torchtune():
    config = one_run(load_config(Path("examples/torchtune_llama2.yaml")))
    assert (config.method.rank, config.method.alpha, config.method.dropout) == (8, 16, 0)
    assert config.method.target_modules == ("q_proj", "v_proj")
    train = config.train
    assert (train.batch_size, train.gradient_accumulation_steps, train.epochs) == (2, 64, 1)
    assert (train.learning_rate, train.weight_decay, train.warmup_steps) == (3e-4, 0.01, 100)
    assert (train.lr_scheduler_type, train.max_grad_norm, train.gradient_checkpointing) == ("cosine", None, True)


def test_the_yaml_by_its_command(peftly, tiny_llama_folder, tmp_path):
    options = ["train.max_steps=3", "train.gradient_accumulation_steps=2", "train.warmup_steps=1", "baselines=false"]
    words = [word for option in options for word in ("--set", option)]
    outcome = peftly(
        "train", "examples/torchtune_llama2.yaml", "--base", tiny_llama_folder, "--out", tmp_path / "run", *words
    )
    assert outcome.code == 0, outcome.err
    fields = ["--field", "instruction=Write the plural of the noun.", "--field", "input=wolf", "--max-new-tokens", 2]
    outcome = peftly("generate", tmp_path / "run", *fields)
    assert outcome.code == 0, outcome.err
