"""Lightning's Trainer on adapted models: logs, learning rate finder, early stopping, and checkpoints that resume."""

import csv
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from tiny import random_token_ids, tiny_model

from peftly import METHODS, attach, trainable_parameters

SETTINGS = {"lora": {"rank": 4, "dropout": 0.2}, "prompt_tuning": {"num_virtual_tokens": 3, "init": "random"}}
DATA = [torch.tensor(text) for text in random_token_ids([8] * 12)]


class Module(lightning.LightningModule):
    def __init__(self, method, lr=0.01):
        super().__init__()
        self.lr = lr
        self.model = attach(tiny_model("llama", torch.float32), METHODS[method].config(**SETTINGS[method]))
        self.seen = []

    def training_step(self, batch, index):
        loss = self.model(batch, labels=batch).loss
        self.seen.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.model(batch, labels=batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(trainable_parameters(self.model).values(), lr=self.lr)


def loader():
    return torch.utils.data.DataLoader(DATA, batch_size=4)


def trainer(folder, **settings):
    settings = {"max_epochs": 3, "logger": False, "enable_checkpointing": False} | settings
    settings |= {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(default_root_dir=folder, log_every_n_steps=1, **settings)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(method, tmp_path):
    torch.manual_seed(1)
    unbroken = Module(method)
    trainer(tmp_path).fit(unbroken, loader())
    torch.manual_seed(1)
    broken = Module(method)
    saver = ModelCheckpoint(tmp_path, filename="last")
    training = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saver])
    training.fit(broken, loader())
    random_state = torch.get_rng_state()  # which Lightning does not save
    resumed = Module(method)
    torch.set_rng_state(random_state)
    trainer(tmp_path).fit(resumed, loader(), ckpt_path=saver.best_model_path, weights_only=False)
    assert broken.seen + resumed.seen == unbroken.seen
    expected = trainable_parameters(unbroken.model)
    assert all(torch.equal(value, expected[name]) for name, value in trainable_parameters(resumed.model).items())


def test_logs_early_stopping_and_a_frozen_base(tmp_path):
    module = Module("lora")
    frozen = {name: value.clone() for name, value in module.state_dict().items() if ".peftly." not in name}
    logger = CSVLogger(tmp_path, name="logs")
    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    training = trainer(tmp_path, logger=logger, callbacks=[stop], max_epochs=9)
    training.fit(module, loader(), loader())
    assert training.current_epoch == 2, "no epoch is better by so much"
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        logged = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert logged == pytest.approx(module.seen)
    now = module.state_dict()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_the_learning_rate_finder_leaves_the_adapter_as_it_was(tmp_path):
    module = Module("lora")
    before = {name: value.detach().clone() for name, value in trainable_parameters(module.model).items()}
    training = trainer(tmp_path)
    finder = Tuner(training).lr_find(module, loader(), num_training=8, attr_name="lr", update_attr=False)
    assert len(finder.results["loss"]) == 8
    after = trainable_parameters(module.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(module.seen) == 8
