"""The registry of the methods. It imports no method and no other package, so that `peftly methods` starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftly.methods.method import Adapter, MethodConfig

__all__ = ["METHODS", "Method", "default_learning_rate"]


@dataclass(frozen=True)
class Method:
    """Entry of the registry: facts that tests, the documentation and the command line read.

    Attributes:
        adapter_class: class of the adapters, or its module and name, as in "peftly.methods.lora:LoRAAdapter".
        config_class: class of the settings, likewise.
        summary: trained parameters, in a few words.
        paper: source of the method.
        learning_rate: default learning rate, for AdamW.
        mergeable: whether an adapter can be merged into the weights of the base.
        identity_at_init: whether a new adapter leaves the outputs of the base unchanged.
        packs: whether the method supports batches in which a caller has packed several examples into one sequence, with
            positions that restart. Training packs by itself, with `peftly.kernels.packed_attention`, for every method.
    """

    adapter_class: type[Adapter] | str
    config_class: type[MethodConfig] | str
    summary: str
    paper: str
    learning_rate: float
    mergeable: bool
    identity_at_init: bool
    packs: bool = True

    @cached_property
    def adapter(self) -> type[Adapter]:
        """Class of the adapters."""
        found: type[Adapter] = _class(self.adapter_class)
        return found

    @cached_property
    def config(self) -> type[MethodConfig]:
        """Class of the settings."""
        found: type[MethodConfig] = _class(self.config_class)
        return found


def _class(path: object) -> Any:
    """Return a class, which may be given by its module and name."""
    return resolve_name(path) if isinstance(path, str) else path


METHODS: dict[str, Method] = {
    "prompt_tuning": Method(
        "peftly.methods.prompt_tuning:PromptTuningAdapter",
        "peftly.methods.prompt_tuning:PromptTuning",
        summary="embeddings of virtual tokens in front of the text",
        paper="arXiv:2104.08691",
        learning_rate=1.2e-2,
        mergeable=False,
        identity_at_init=False,
    ),
    "p_tuning": Method(
        "peftly.methods.p_tuning:PTuningAdapter",
        "peftly.methods.p_tuning:PTuning",
        summary="virtual tokens that a small network computes",
        paper="arXiv:2103.10385",
        learning_rate=1e-2,
        mergeable=False,
        identity_at_init=False,
    ),
    "prefix_tuning": Method(
        "peftly.methods.prefix_tuning:PrefixTuningAdapter",
        "peftly.methods.prefix_tuning:PrefixTuning",
        summary="keys and values of every layer, in front of the text",
        paper="arXiv:2101.00190",
        learning_rate=1e-2,
        mergeable=False,
        identity_at_init=False,
        packs=False,
    ),
    "p_tuning_v2": Method(
        "peftly.methods.prefix_tuning:PTuningV2Adapter",
        "peftly.methods.prefix_tuning:PTuningV2",
        summary="keys and values as in prefix tuning, and the classifier",
        paper="arXiv:2110.07602",
        learning_rate=2e-2,
        mergeable=False,
        identity_at_init=False,
        packs=False,
    ),
    "adapter": Method(
        "peftly.methods.adapter:BottleneckAdapter",
        "peftly.methods.adapter:AdapterConfig",
        summary="bottleneck networks in every block",
        paper="arXiv:1902.00751",
        learning_rate=1e-3,
        mergeable=False,
        identity_at_init=True,
    ),
    "lora": Method(
        "peftly.methods.lora:LoRAAdapter",
        "peftly.methods.lora:LoRA",
        summary="low-rank updates of linear layers",
        paper="arXiv:2106.09685",
        learning_rate=5e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "dora": Method(
        "peftly.methods.dora:DoRAAdapter",
        "peftly.methods.dora:DoRA",
        summary="magnitudes and low-rank updates of linear layers",
        paper="arXiv:2402.09353",
        learning_rate=5e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "ia3": Method(
        "peftly.methods.ia3:IA3Adapter",
        "peftly.methods.ia3:IA3",
        summary="scaling vectors on keys, values and feed-forward activations",
        paper="arXiv:2205.05638",
        learning_rate=1e-2,
        mergeable=True,
        identity_at_init=True,
    ),
    "bitfit": Method(
        "peftly.methods.bitfit:BitFitAdapter",
        "peftly.methods.bitfit:BitFit",
        summary="copies of the bias vectors",
        paper="arXiv:2106.10199",
        learning_rate=3e-3,
        mergeable=True,
        identity_at_init=True,
    ),
    "selective": Method(
        "peftly.methods.selective:SelectiveAdapter",
        "peftly.methods.selective:Selective",
        summary="copies of the head, the last blocks or the normalisations",
        paper="-",
        learning_rate=1e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "full": Method(
        "peftly.methods.selective:FullAdapter",
        "peftly.methods.selective:Full",
        summary="copies of all parameters, as a baseline",
        paper="-",
        learning_rate=2e-5,
        mergeable=True,
        identity_at_init=True,
    ),
}


def default_learning_rate(config: MethodConfig) -> float:
    """Return the default learning rate of a method with given settings, for AdamW."""
    return METHODS[config.name].learning_rate * config.default_rate_factor
