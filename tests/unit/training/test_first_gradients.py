"""Layers that training would train in vain are named in the first step, or refused if all are."""

import pytest
from tiny import tiny_model
from torch import nn
from training_jobs import data_of, run

from peftly import BitFit, LoRA, attach
from peftly.errors import TrainingError


def model_with_spare_layers(*targets):
    """Return a model that has two layers which it does not call."""
    model = tiny_model("llama")
    for block in model.model.layers:
        block.spare = nn.Linear(32, 32).double()
    return attach(model, LoRA(rank=2, target_modules=targets))


def test_layers_without_a_gradient_are_named_once():
    model = model_with_spare_layers("q_proj", "spare")
    message = (
        "2 of 4 trained layers got no gradient in the first step, because the model did not use them: "
        r"model\.layers\.0\.spare, model\.layers\.1\.spare"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        run(model, data_of(4, 0), max_steps=2)
    assert len([one for one in caught if "no gradient" in str(one.message)]) == 1


def test_training_of_unused_layers_alone_is_refused(tmp_path):
    model = model_with_spare_layers("spare")
    with pytest.raises(TrainingError, match=r"no trained parameter gets a gradient.*model\.layers\.0\.spare"):
        run(model, data_of(4, 0), out=tmp_path)


@pytest.mark.parametrize("config", [LoRA(rank=2), LoRA(rank=2, init="pissa"), BitFit()], ids=lambda one: one.name)
def test_ordinary_training_names_nothing(config, recwarn):
    run(attach(tiny_model("opt"), config), data_of(4, 0), max_steps=1)
    assert not [one for one in recwarn if "no gradient" in str(one.message)]
