"""An adapter that is in training mode is saved, exported and explained as it computes in evaluation mode."""

import pytest
import torch
from references import ARCHITECTURE_OF, DEFAULTS
from tiny import perturb, random_token_ids, tiny_model

from peftly import METHODS, attach, attached, load_adapter, merge, save_adapter, trainable_parameters
from peftly.adapters.files import TENSORS, TRAINING, read_tensors

DROPOUT = {
    "p_tuning": {"encoder_layers": 2, "encoder_dropout": 0.5},
    "adapter": {"dropout": 0.5},
    "lora": {"dropout": 0.5},
    "dora": {"dropout": 0.5},
}
NETWORKS = {"prompt_tuning": {"residual_dim": 4}, "prefix_tuning": {"init": "random", "projection": True}}
CASES = [(method, {**DEFAULTS[method], **DROPOUT.get(method, {})}) for method in ARCHITECTURE_OF]
CASES += [(method, {**DEFAULTS[method], **more}) for method, more in NETWORKS.items()]


def made(method, settings):
    model = attach(tiny_model(ARCHITECTURE_OF[method], torch.float32), METHODS[method].config(**settings))
    perturb(trainable_parameters(model).values())
    return model


def tensors(folder):
    found = [(folder / name).is_file() and read_tensors(folder, name) for name in (TENSORS, TRAINING)]
    return {f"{index} {name}": value for index, part in enumerate(found) for name, value in (part or {}).items()}


@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_saving_in_training_mode_is_saving_in_evaluation_mode(method, settings, tmp_path):
    model = made(method, settings)
    model.eval()
    save_adapter(model, tmp_path / "evaluation")
    model.train()
    adapter = attached(model)["default"]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    save_adapter(model, tmp_path / "training")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in adapter.parameters().values())
    expected, found = tensors(tmp_path / "evaluation"), tensors(tmp_path / "training")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    loaded = load_adapter(tiny_model(ARCHITECTURE_OF[method], torch.float32), tmp_path / "training").eval()
    ids = torch.tensor(random_token_ids([6, 6]))
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("method", [method for method in ARCHITECTURE_OF if METHODS[method].mergeable])
def test_merging_in_training_mode_is_merging_in_evaluation_mode(method):
    settings = {**DEFAULTS[method], **DROPOUT.get(method, {})}
    merged = [merge(made(method, settings).train(mode)).eval() for mode in (True, False)]
    ids = torch.tensor(random_token_ids([6, 6]))
    assert torch.equal(merged[0](ids).logits, merged[1](ids).logits)
