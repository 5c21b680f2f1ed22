"""P-tuning whose encoder has dropout."""

import torch
from tiny import tiny_model
from training_jobs import IdTokenizer, data_of, weights

from peftly import PTuning, TrainConfig, attach, attached, save_adapter, train
from peftly.adapters.files import TENSORS, read_tensors
from peftly.adapters.folder import AdapterFolder

CONFIG = PTuning(num_virtual_tokens=3, encoder="lstm", encoder_dim=4, encoder_dropout=0.5)


def trained(**settings):
    model = attach(tiny_model("llama", torch.float32), CONFIG, seed=1)
    config = TrainConfig(max_steps=4, batch_size=4, learning_rate=1e-2, **settings.pop("config", {}))
    train(model, data_of(16, 0), config, tokenizer=IdTokenizer(), **settings)
    return model


def test_the_saved_prompt_is_the_one_without_dropout(tmp_path):
    model = trained(out=tmp_path / "run")
    save_adapter(model, tmp_path / "again")
    saved, again = (read_tensors(folder, TENSORS) for folder in (tmp_path / "run" / "adapter", tmp_path / "again"))
    assert torch.equal(saved["prompt_embeddings"], again["prompt_embeddings"])
    model.train()
    assert not torch.equal(attached(model)["default"].virtual_tokens.values(), again["prompt_embeddings"])
    assert AdapterFolder.read(tmp_path / "again").method == CONFIG


def test_saving_in_the_middle_does_not_change_the_training(tmp_path):
    plain, saving = trained(), trained(out=tmp_path / "run", config={"save_steps": 1})
    assert all(torch.equal(weights(plain)[name], value) for name, value in weights(saving).items())
