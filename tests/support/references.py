"""What an adapted model should compute, written out plainly from the papers on an unadapted copy of the base."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from tiny import ARCHITECTURES, perturb, tiny_model
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from peftly import METHODS, attach, attached, detach, trainable_parameters
from peftly.evaluation.losses import target_losses
from peftly.inference.logits import labelled_logits
from peftly.injection.module_copies import copied_parameters

Logits = Callable[[Tensor], Tensor]
DEFAULTS = {
    "prompt_tuning": {"num_virtual_tokens": 4, "init": "random"},
    "p_tuning": {"num_virtual_tokens": 3, "encoder": "lstm", "encoder_dim": 5},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "p_tuning_v2": {"num_virtual_tokens": 3},
    "adapter": {"bottleneck_dim": 3, "init": "near_identity", "activation": "tanh"},
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "ia3": {},
    "bitfit": {},
    "selective": {"head": True, "last_layers": 1, "layer_norms": True},
    "full": {},
}


def assert_close(actual: Tensor, expected: Tensor, bound: float = 2e-5) -> None:
    """Compare whole tensors: the length of their difference against that of what is expected."""
    error = (actual - expected).norm() / expected.norm()
    assert error <= bound, f"relative difference {error:.1e}"


def token_loss(model, batch, logits_of=labelled_logits) -> tuple[Tensor, int]:
    """The summed loss of a batch, and how many targets it is over."""
    losses = target_losses(model, batch, logits_of)
    return losses.sum(), losses.numel()


@cache
def misfit(architecture: str, method: str) -> str | None:
    """Why the architecture cannot carry the method, as the method itself declares it."""
    return METHODS[method].adapter.misfit(tiny_model(architecture))


CELLS = [(a, m) for a in ARCHITECTURES for m in METHODS if misfit(a, m) is None]
CAUSAL = [m for m in METHODS if m != "p_tuning_v2"]  # which needs a classifier
HOMES = [(next(a for a in ("llama", "gpt2") if misfit(a, m) is None), m) for m in CAUSAL]
"""Every method once, on llama if it can be."""
HOME = {method: architecture for architecture, method in HOMES}


def adapted(architecture: str, method: str, dtype: torch.dtype = torch.float64, **settings):
    """An adapted tiny model whose weights were moved, and the logits it should give for one unpadded row."""
    model = tiny_model(architecture, dtype)
    attach(model, METHODS[method].config(**DEFAULTS[method] | settings))
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)  # fp32 masters would limit what float64 can show
    return model, reference(model)


def reference(model, name: str = "default") -> Logits:
    """What the model computes with this one adapter."""
    adapter = attached(model)[name]
    base = detach(copy.deepcopy(model))
    values = {key: value.detach().clone() for key, value in adapter.own_tensors().items()}
    for path, value in copied_parameters(model, name).items():
        module, _, attribute = path.rpartition(".")  # not into the parameter as it is, which others may share
        setattr(base.get_submodule(module), attribute, nn.Parameter(value.detach().clone()))
    return _REFERENCES.get(adapter.config.name, _as_it_is)(base, adapter.config, values)


def _as_it_is(base, config, values) -> Logits:
    return lambda ids: base(ids, use_cache=False).logits


def _prompted(base, config, values) -> Logits:
    """Trained rows in front of the word embeddings, through `inputs_embeds`."""
    rows = values["prompt_embeddings"]

    def logits(ids: Tensor) -> Tensor:
        words = base.get_input_embeddings()(ids)
        embeds = torch.cat([rows.to(words.dtype).expand(ids.shape[0], -1, -1), words], 1)
        return base(inputs_embeds=embeds, use_cache=False).logits[:, rows.shape[0] :]

    return logits


def _prefixed(base, config, values) -> Logits:
    """A cache that was filled beforehand."""
    (rows,) = values.values()

    def logits(ids: Tensor) -> Tensor:
        text_config = base.config.get_text_config()
        heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
        states = rows.view(len(rows), 2 * text_config.num_hidden_layers, heads, -1).permute(1, 2, 0, 3)
        cache = DynamicCache(config=text_config)
        for layer in range(text_config.num_hidden_layers):
            keys, values = (states[2 * layer + half].to(base.dtype).expand(len(ids), -1, -1, -1) for half in (0, 1))
            cache.update(keys, values, layer)
        return base(ids, past_key_values=cache).logits

    return logits


def _with_deltas(base, config, values) -> Logits:
    """The update added into the weights; for DoRA every row is then given its length."""
    for key, lora_a in values.items():
        if "lora_A" in key or "lora_embedding_A" in key:
            layer = base.get_submodule(_path(key))
            weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
            changed = weight + config.alpha / config.rank * values[key.replace("_A", "_B")] @ lora_a
            if config.name == "dora":
                length = changed.norm(dim=1, keepdim=True)
                changed = changed / length * values[key.replace("lora_A.weight", "lora_magnitude_vector")][:, None]
            layer.weight.data = (changed if isinstance(layer, nn.Linear) else changed.T).to(layer.weight.dtype)
    return _with_biases(base, config, values)


def _with_biases(base, config, values) -> Logits:
    for key, bias in values.items():
        if key.endswith(".bias"):
            base.get_submodule(_path(key.replace(".base_layer", ""))).bias.data = bias
    return _as_it_is(base, config, values)


def _scaled(base, config, values) -> Logits:
    """Factors on the columns of feed-forward output weights, else on the rows, and the bias, of a weight."""
    for key, factors in values.items():
        layer = base.get_submodule(_path(key))
        on_input = any(name in key for name in ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj"))
        by_column = on_input != isinstance(layer, Conv1D)
        factors = factors.flatten()
        layer.weight.data = layer.weight * (factors if by_column else factors[:, None])
        if layer.bias is not None and not on_input:
            layer.bias.data = layer.bias * factors
    return _as_it_is(base, config, values)


def _with_bottlenecks(base, config, values) -> Logits:
    """Hooks that add `W_up f(W_down h + b) + b`."""
    for key in values:
        if key.endswith(".adapter_down"):
            down, up, down_bias, up_bias = (
                values[key.replace("adapter_down", f"adapter_{part}")]
                for part in ("down", "up", "down_bias", "up_bias")
            )

            def change(h, down=down, up=up, down_bias=down_bias, up_bias=up_bias):
                return getattr(torch, config.activation)(h @ down.T + down_bias) @ up.T + up_bias

            def parallel(module, args, output, change=change):
                return output + (config.scaling or 4.0) * change(args[0])

            def sequential(module, args, output, change=change):
                return output + (config.scaling or 1.0) * change(output)

            module = base.get_submodule(_path(key))
            module.register_forward_hook(parallel if config.placement == "parallel" else sequential)
    return _as_it_is(base, config, values)


_REFERENCES = {
    "prompt_tuning": _prompted,
    "p_tuning": _prompted,
    "prefix_tuning": _prefixed,
    "adapter": _with_bottlenecks,
    "lora": _with_deltas,
    "dora": _with_deltas,
    "ia3": _scaled,
    "bitfit": _with_biases,
}


def _path(key: str) -> str:
    """The module that a saved name is about."""
    return (
        key.removeprefix("base_model.model.")
        .partition(".lora_")[0]
        .partition(".ia3_l")[0]
        .partition(".adapter_")[0]
        .removesuffix(".bias")
    )
