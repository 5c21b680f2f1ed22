"""A real base in 4 bits: its memory, and an evaluation between two trainings."""

import pytest
import torch

from peftly import LoRA, TrainConfig, attach, detach, evaluate, load_base, train, trainable_parameters
from peftly.data import DataConfig, load_data
from peftly.kernels.quantized import is_quantized


@pytest.fixture(scope="module")
def base():
    return load_base("smollm2-135m", quantization="nf4")


def test_a_weight_takes_the_bits_of_the_paper(base):
    """4 bits for each weight, and 0.127 for the scales of blocks of 64 (section 3 of arXiv:2305.14314)."""
    layers = [layer for layer in base.model.modules() if is_quantized(layer)]
    assert len(layers) == 30 * 7
    states = [layer.weight.quant_state for layer in layers]
    parts = [
        tensor
        for layer, state in zip(layers, states, strict=True)
        for tensor in (layer.weight.data, state.absmax, state.state2.absmax)
    ]
    tables = {id(tensor): tensor for state in states for tensor in (state.code, state.state2.code, state.offset)}
    size = sum(tensor.nbytes for tensor in [*parts, *tables.values()])
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert size * 8 / weights == pytest.approx(4.127, rel=0.05)
    rest = {id(parameter): parameter for parameter in base.model.parameters() if parameter.is_floating_point()}
    assert sum(parameter.numel() for parameter in rest.values()) + weights == 134_515_008


def test_an_evaluation_between_two_trainings_changes_nothing(base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say it:", "completion": " yes"}\n{"prompt": "And then:", "completion": " no, not"}\n')
    data = load_data(DataConfig(train=str(rows), validation_fraction=0), base.tokenizer)
    trained = []
    for evaluates in (False, True):
        attach(base.model, LoRA(rank=4, target_modules=("q_proj", "down_proj")))
        for step in range(2):
            train(base.model, data, TrainConfig(max_steps=1, batch_size=2, seed=step), tokenizer=base.tokenizer)
            if evaluates:
                evaluate(base.model, base.tokenizer, data.train, data.row_format)
        trained.append([parameter.detach().clone() for parameter in trainable_parameters(base.model).values()])
        detach(base.model)
    assert all(torch.equal(*pair) for pair in zip(*trained, strict=True))
