"""Layers of unusual classes in the models of transformers: routers, grouped layers, caches of their own, containers."""

import copy

import pytest
import torch
import transformers
from model_inputs import working_inputs
from tiny import perturb
from tiny_configs import tiny_configs
from torch import nn
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear
from transformers.models.levit.modeling_levit import LevitAttention
from transformers.models.phimoe.modeling_phimoe import PhimoeConfig, PhimoeTopKRouter
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertLayerNorm

import peftly
from peftly import BitFit, Full, LoRA, PrefixTuning, PromptTuning, attach, load_adapter, merge, save_adapter
from peftly.errors import MethodError


def router():
    return PhimoeTopKRouter(PhimoeConfig(hidden_size=8, num_local_experts=4))


@pytest.mark.parametrize("layer", [router(), DeepseekV4GroupedLinear(8, 8, 2)], ids=lambda layer: type(layer).__name__)
def test_a_layer_that_computes_more_than_a_product_has_no_factors(layer):
    model = attach(nn.ModuleDict({"router": layer, "proj": nn.Linear(8, 8)}), LoRA(rank=2))
    assert {name.partition(".")[0] for name in peftly.trainable_parameters(model)} == {"proj"}
    with pytest.raises(MethodError, match="no linear layer"):
        attach(nn.ModuleDict({"router": layer, "proj": nn.Linear(8, 8)}), LoRA(rank=2, target_modules=("router",)))


def test_a_bias_of_channels_in_front():
    layer = SqueezeBertLayerNorm(6)
    model, x = attach(nn.Sequential(copy.deepcopy(layer)), BitFit()), torch.randn(2, 6, 6)
    perturb(peftly.trainable_parameters(model).values())
    layer.bias.data.copy_(peftly.trainable_parameters(model)["0.peftly.default.bias"])
    torch.testing.assert_close(model(x), layer(x))


def levit():
    torch.manual_seed(0)
    layer = LevitAttention(8, 4, 2, 2, 2)
    nn.init.normal_(layer.attention_biases)
    return nn.Sequential(layer)


def test_a_copy_keeps_no_tensor_that_the_base_has_computed(tmp_path):
    base, x = levit().eval(), torch.randn(2, 4, 8)
    with torch.no_grad():
        base(x)  # which stores its biases for evaluation
    model = attach(copy.deepcopy(base), Full())
    perturb(peftly.trainable_parameters(model).values())
    expected = model(x)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(copy.deepcopy(base), tmp_path)(x), expected)
    torch.testing.assert_close(merge(model)(x), expected)


class Experts(nn.Module):
    """Module whose methods are called, and never its forward."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def shifted(self, x):
        return x + self.bias

    def forward(self, x):
        """Nothing."""
        raise NotImplementedError("call shifted")


class Layer(nn.Module):
    """Module that reads the parameters of modules inside it which are never called."""

    def __init__(self):
        super().__init__()
        self.experts, self.scales = Experts(), nn.ParameterList([torch.ones(4)])

    def forward(self, x):
        return self.experts.shifted(x) * self.scales[0]


def test_a_module_that_is_never_called_is_copied_with_the_one_around_it():
    model, x = attach(nn.Sequential(Layer(), nn.Linear(4, 4)), Full()), torch.randn(2, 4)
    perturb(peftly.trainable_parameters(model).values())
    expected = model(x)
    expected.sum().backward()
    assert all(parameter.grad is not None for parameter in peftly.trainable_parameters(model).values())
    torch.testing.assert_close(merge(model)(x), expected)


def test_a_copy_of_a_whole_model_holds_no_adapters_of_it():
    model = tiny_of("unispeech-sat", "UniSpeechSatForPreTraining")
    attach(model, Full())
    copied = [module.copy for module in model.modules() if hasattr(module, "placed")]
    assert copied
    assert not any(hasattr(module, "_peftly") for copy_ in copied for module in copy_.modules())
    copy.deepcopy(copy.deepcopy(model))


@pytest.mark.parametrize("settings", [PromptTuning(num_virtual_tokens=2), LoRA(rank=2)], ids=["prompt", "lora"])
def test_layers_that_look_up_ids(settings):
    model = tiny_of("deepseek_v4", "DeepseekV4ForCausalLM")
    if isinstance(settings, PromptTuning):
        with pytest.raises(MethodError, match="look up ids in tables of their own"):
            attach(model, settings)
    else:
        model(**working_inputs(attach(model, settings)))


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [
        ("gemma3n_text", "Gemma3nForCausalLM"),
        ("gemma4_text", "Gemma4TextModel"),
        ("neomme", "NeoMMEForMaskedLM"),
    ],
)
def test_a_second_table_of_ids(model_type, class_name):
    model = tiny_of(model_type, class_name)
    with pytest.raises(MethodError, match="looks up ids a second time; lora"):
        attach(model, PromptTuning(num_virtual_tokens=2, init="random"))


def test_a_prefix_starts_at_the_states_of_tokens_of_a_stack_that_the_model_does_not_name():
    model = tiny_of("dia", "DiaForConditionalGeneration")
    with pytest.raises(MethodError, match="lora works on it"):
        attach(model, PrefixTuning(num_virtual_tokens=2))


def tiny_of(model_type, class_name):
    return getattr(transformers, class_name)(next(tiny_configs(model_type))).eval()


@pytest.mark.parametrize("settings", [PromptTuning(num_virtual_tokens=2), PrefixTuning(num_virtual_tokens=2)])
def test_streams_that_predict_several_tokens(settings):
    with pytest.raises(MethodError, match="ngram"):
        attach(tiny_of("prophetnet", "ProphetNetForCausalLM"), settings)


@pytest.mark.filterwarnings("ignore:untied")
def test_a_head_whose_input_is_scaled_because_it_is_tied(tmp_path):
    model = tiny_of("switch_transformers", "SwitchTransformersForConditionalGeneration")
    inputs = working_inputs(model)
    attach(model, LoRA(rank=2, target_modules=("lm_head",)))
    perturb(peftly.trainable_parameters(model).values())
    expected = model(**inputs).logits
    merged = merge(model)
    torch.testing.assert_close(merged(**inputs).logits, expected)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(type(merged).from_pretrained(tmp_path).eval()(**inputs).logits, expected)


class Shift(nn.Module):
    """Module of which others call two methods that are not the forward, one inside the other."""

    def __init__(self):
        super().__init__()
        self.scale, self.proj = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.moved(x) + 1

    def moved(self, x):
        return nn.functional.linear(x, self.proj.weight) * self.scaled(x)

    def scaled(self, x):
        return self.proj(x) * self.scale


class Rows(nn.Embedding):
    """Embedding with a second way to look up rows, as ProphetNet's positions have."""

    def later(self, ids):
        return super().forward(ids + 1)


class Caller(nn.Module):
    """Module that calls methods of modules inside it."""

    def __init__(self):
        super().__init__()
        self.inner, self.rows, self.several = Shift(), Rows(6, 4), nn.ModuleList([Shift()])

    def forward(self, ids):
        x = self.rows(ids) + self.rows.later(ids)
        x = self.inner(x) + self.inner.moved(x)
        for layer in self.several:
            x = layer.moved(x)
        return x


METHODS_CALLED = {
    "full": Full(),
    "lora": LoRA(rank=2, target_modules=r".*\.proj|.*rows"),
    "rows": LoRA(rank=2, target_modules=r".*rows"),
    "module": LoRA(rank=2, target_modules=r".*rows", modules_to_save=("0.inner",)),
}


@pytest.mark.parametrize("settings", METHODS_CALLED.values(), ids=METHODS_CALLED)
def test_other_methods_than_the_forward(settings):
    torch.manual_seed(0)
    base, ids = nn.Sequential(Caller(), nn.Linear(4, 4)), torch.tensor([[0, 4]])
    model = attach(copy.deepcopy(base), settings)
    perturb(peftly.trainable_parameters(model).values(), scale=0.2)
    outputs = model(ids)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in peftly.trainable_parameters(model).values())
    bare = copy.deepcopy(model)
    peftly.detach(bare)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name])
    torch.testing.assert_close(bare(ids), base(ids), rtol=0, atol=0)
    torch.testing.assert_close(merge(model)(ids), outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "class_name", "settings"),
    [
        ("prophetnet", "ProphetNetForCausalLM", Full()),
        ("gemma3n_text", "Gemma3nTextModel", Full()),
        ("gemma3n_text", "Gemma3nTextModel", LoRA(rank=2, target_modules=("correction_coefs", "prediction_coefs"))),
    ],
)
def test_methods_that_models_call(model_type, class_name, settings):
    model = tiny_of(model_type, class_name)
    inputs = working_inputs(model)
    attach(model, settings)
    perturb(peftly.trainable_parameters(model).values(), scale=0.05)
    outputs = model(**inputs)[0]
    torch.testing.assert_close(merge(model)(**inputs)[0], outputs, rtol=1e-3, atol=1e-4)


def test_a_stack_that_puts_images_beside_the_text_takes_no_prompt():
    """GIT's outputs have the columns of its image in front, and the wrong ones were taken for the text."""
    model = transformers.GitForCausalLM(next(tiny_configs("git")))
    with pytest.raises(MethodError, match="pixel_values"):
        attach(model, PromptTuning(num_virtual_tokens=3, init="random"))


def test_a_norm_with_an_activation_has_no_bias_that_is_added_last():
    """BiT's normalisations end with an activation: the difference of the biases was added behind it."""
    model = transformers.BitForImageClassification(next(tiny_configs("bit"))).eval()
    inputs = working_inputs(model)
    attach(model, BitFit())
    perturb(peftly.trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(merge(model)(**inputs).logits, expected)


@pytest.mark.parametrize(("model_type", "name"), [("funnel", "FunnelForSequenceClassification")])
def test_a_stack_that_pools_its_tokens_takes_no_prompt(model_type, name):
    model = getattr(transformers, name)(next(tiny_configs(model_type)))
    with pytest.raises(MethodError, match="would be pooled"):
        attach(model, PromptTuning(num_virtual_tokens=3, init="random"))


def test_a_mask_of_global_attention_has_a_column_for_each_virtual_token():
    """Longformer's classifier makes this mask for the tokens of the text alone, and the call failed."""
    model = transformers.LongformerForSequenceClassification(next(tiny_configs("longformer"))).eval()
    inputs = working_inputs(model)
    attach(model, PromptTuning(num_virtual_tokens=3, init="random"))
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
