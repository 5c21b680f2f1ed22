"""Expected outputs of adapted models, computed by the formulas of the papers on a copy of the base without adapters."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
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
    """Compare whole tensors by the norm of their difference, relative to the norm of the expected tensor."""
    error = (actual - expected).norm() / expected.norm()
    assert error <= bound, f"relative difference {error:.1e}"


def token_loss(model, batch, logits_of=labelled_logits) -> tuple[Tensor, int]:
    """Return the summed loss of a batch and the number of its targets."""
    losses = target_losses(model, batch, logits_of)
    return losses.sum(), losses.numel()


@cache
def unsupported_reason(architecture: str, method: str) -> str | None:
    """Return why the method does not support the architecture, as the method declares it."""
    return METHODS[method].adapter.unsupported_reason(tiny_model(architecture))


CELLS = [(a, m) for a in ARCHITECTURES for m in METHODS if unsupported_reason(a, m) is None]
ARCHITECTURE_OF = {m: a for m in METHODS for a in ("gpt2", "llama") if unsupported_reason(a, m) is None}
"""Architecture for each method that supports a language model: llama if possible."""
METHOD_CELLS = [(architecture, method) for method, architecture in ARCHITECTURE_OF.items()]
CAUSAL = list(ARCHITECTURE_OF)
KINDS = ("lora", "prompt_tuning", "prefix_tuning", "selective")
"""A method of each kind: one that changes layers, virtual tokens, keys and values, and copies of modules."""


def of_each_kind(cells):
    """Return parameters of a test: cells that end with a method, or methods. Those not of `KINDS` are for `make soak`.

    Other tests of `make test` run the other methods through the same code.
    """
    marks = {True: (), False: pytest.mark.soak}
    cells = [cell if isinstance(cell, tuple) else (cell,) for cell in cells]
    return [pytest.param(*cell, marks=marks[cell[-1] in KINDS]) for cell in cells]


def adapted(architecture: str, method: str, dtype: torch.dtype = torch.float64, **settings):
    """Return an adapted tiny model with perturbed weights, and a function that returns its expected logits."""
    model = tiny_model(architecture, dtype)
    attach(model, METHODS[method].config(**DEFAULTS[method] | settings))
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)  # fp32 masters would limit what float64 can show
    return model, reference(model)


def reference(model, name: str = "default") -> Logits:
    """Return the expected logits of a model with one adapter, as a function of unpadded token ids."""
    adapter = attached(model)[name]
    base = detach(copy.deepcopy(model))
    values = {key: value.detach().clone() for key, value in adapter.file_tensors().items()}
    for path, value in copied_parameters(model, name).items():
        module, _, attribute = path.rpartition(".")  # not into the parameter as it is, which others may share
        setattr(base.get_submodule(module), attribute, nn.Parameter(value.detach().clone()))
    return _REFERENCES.get(adapter.config.name, _unchanged)(base, adapter.config, values)


def _unchanged(base, config, values) -> Logits:
    return lambda ids: base(ids, use_cache=False).logits


def _prompted(base, config, values) -> Logits:
    """Prompt embeddings in front of the token embeddings, through `inputs_embeds`."""
    prompt = values["prompt_embeddings"]

    def logits(ids: Tensor) -> Tensor:
        text = base.get_input_embeddings()(ids)
        embeds = torch.cat([prompt.to(text.dtype).expand(ids.shape[0], -1, -1), text], 1)
        return base(inputs_embeds=embeds, use_cache=False).logits[:, prompt.shape[0] :]

    return logits


def _prefixed(base, config, values) -> Logits:
    """A cache that holds the prefix before the call."""
    (prefix,) = values.values()

    def logits(ids: Tensor) -> Tensor:
        text_config = base.config.get_text_config()
        heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
        states = prefix.view(len(prefix), 2 * text_config.num_hidden_layers, heads, -1).permute(1, 2, 0, 3)
        cache = DynamicCache(config=text_config)
        for layer in range(text_config.num_hidden_layers):
            keys, values = (states[2 * layer + half].to(base.dtype).expand(len(ids), -1, -1, -1) for half in (0, 1))
            cache.update(keys, values, layer)
        return base(ids, past_key_values=cache).logits

    return logits


def _with_deltas(base, config, values) -> Logits:
    """Weights plus low-rank updates; for DoRA each row then gets its magnitude as norm."""
    for key, lora_a in values.items():
        if "lora_A" in key or "lora_embedding_A" in key:
            layer = base.get_submodule(_path(key))
            weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
            updated = weight + config.alpha / config.rank * values[key.replace("_A", "_B")] @ lora_a
            if config.name == "dora":
                norm = updated.norm(dim=1, keepdim=True)
                updated = updated / norm * values[key.replace("lora_A.weight", "lora_magnitude_vector")][:, None]
            layer.weight.data = (updated if isinstance(layer, nn.Linear) else updated.T).to(layer.weight.dtype)
    return _with_biases(base, config, values)


def _with_biases(base, config, values) -> Logits:
    for key, bias in values.items():
        if key.endswith(".bias"):
            base.get_submodule(_path(key.replace(".base_layer", ""))).bias.data = bias
    return _unchanged(base, config, values)


def _scaled(base, config, values) -> Logits:
    """Weights whose columns (of the last feed-forward layers) or rows and bias (of other layers) are scaled."""
    for key, factors in values.items():
        layer = base.get_submodule(_path(key))
        on_input = any(name in key for name in ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj"))
        scales_last_dim = on_input != isinstance(layer, Conv1D)
        factors = factors.flatten()
        layer.weight.data = layer.weight * (factors if scales_last_dim else factors[:, None])
        if layer.bias is not None and not on_input:
            layer.bias.data = layer.bias * factors
    return _unchanged(base, config, values)


def _with_bottlenecks(base, config, values) -> Logits:
    """Hooks that add `W_up f(W_down h + b_down) + b_up`."""
    for key in values:
        if key.endswith(".adapter_down"):
            down, up, down_bias, up_bias = (
                values[key.replace("adapter_down", f"adapter_{part}")]
                for part in ("down", "up", "down_bias", "up_bias")
            )

            def network(h, down=down, up=up, down_bias=down_bias, up_bias=up_bias):
                return getattr(torch, config.activation)(h @ down.T + down_bias) @ up.T + up_bias

            def parallel(module, args, output, network=network):
                return output + (config.scaling or 4.0) * network(args[0])

            def sequential(module, args, output, network=network):
                return output + (config.scaling or 1.0) * network(output)

            module = base.get_submodule(_path(key))
            module.register_forward_hook(parallel if config.placement == "parallel" else sequential)
    return _unchanged(base, config, values)


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
    """Return the path of the module to which a name in a file belongs."""
    return (
        key.removeprefix("base_model.model.")
        .partition(".lora_")[0]
        .partition(".ia3_l")[0]
        .partition(".adapter_")[0]
        .removesuffix(".bias")
    )
