"""Each kind of layer is compared before and after a merge with inputs that it takes."""

import copy

import pytest
import torch
from tiny import perturb
from torch import nn
from transformers.models.got_ocr2.modeling_got_ocr2 import GotOcr2LayerNorm
from transformers.models.ibert.quant_modules import IntLayerNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.models.plbart.modeling_plbart import PLBartLearnedPositionalEmbedding

from peftly import BitFit, Full, attach, merge, trainable_parameters
from peftly.errors import MethodError
from peftly.injection import BiasCopy, ModuleCopy

LAYERS = {
    "linear": nn.Linear(6, 4),
    "embedding": nn.Embedding(10, 4),
    "positions of a mask": OPTLearnedPositionalEmbedding(10, 4),
    "positions": PLBartLearnedPositionalEmbedding(10, 4),
    "norm": nn.LayerNorm(4),
    "norm of a matrix": nn.LayerNorm((3, 4)),
    "norm of transformers": LlamaRMSNorm(4),
    "norm of images": GotOcr2LayerNorm(4, data_format="channels_first"),
    "group norm": nn.GroupNorm(2, 4),
    "batch norm": nn.BatchNorm1d(4),
    "batch norm of images": nn.BatchNorm2d(4),
    "batch norm of videos": nn.BatchNorm3d(4),
    "convolution": nn.Conv1d(6, 4, 3, dilation=2),
    "patches": nn.Conv2d(3, 4, 16, stride=16),
    "transposed convolution": nn.ConvTranspose2d(3, 4, 3, stride=2),
}
NOT_COMPARED = {
    "an input among several": nn.Bilinear(3, 4, 5),
    "a scale with the numbers": IntLayerNorm(4, 1e-5, quant_mode=True),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_wrong_merge_of_a_layer_of_any_kind_is_refused(kind, monkeypatch):
    model = attach(nn.Sequential(copy.deepcopy(LAYERS[kind])), Full())
    perturb(trainable_parameters(model).values())
    monkeypatch.setattr(ModuleCopy, "merge_into", lambda change, layer: None)
    with pytest.raises(MethodError, match="cannot be merged: its outputs would change by"):
        merge(model)
    monkeypatch.undo()
    weight = trainable_parameters(model)["0.peftly.default.copy.weight"].detach().clone()
    torch.testing.assert_close(merge(model)[0].weight, weight)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "norm" in kind and kind != "norm of transformers"])
def test_a_wrong_merge_of_a_bias_is_refused(kind, monkeypatch):
    model = attach(nn.Sequential(copy.deepcopy(LAYERS[kind])), BitFit()).eval()
    perturb(trainable_parameters(model).values())
    monkeypatch.setattr(BiasCopy, "merge_into", lambda change, layer: None)
    with pytest.raises(MethodError, match="cannot be merged: its outputs would change by"):
        merge(model)


@pytest.mark.parametrize("kind", NOT_COMPARED)
def test_a_layer_with_other_inputs_is_merged_without_a_comparison(kind):
    model = attach(nn.Sequential(copy.deepcopy(NOT_COMPARED[kind])), Full())
    perturb(trainable_parameters(model).values())
    weight = trainable_parameters(model)["0.peftly.default.copy.weight"].detach().clone()
    torch.testing.assert_close(merge(model)[0].weight, weight)
