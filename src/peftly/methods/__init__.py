"""One file per method, and the registry `METHODS`. May import: `injection`, `kernels`, `data`.

A new method is one file here and one entry of `METHODS`. Several methods share `method` (the interface), `low_rank`,
`soft_prompt`, `initial_tokens` and `quantization_error`.
"""

from peftly.methods.adapter import AdapterConfig, BottleneckAdapter
from peftly.methods.bitfit import BitFit, BitFitAdapter
from peftly.methods.dora import DoRA, DoRAAdapter
from peftly.methods.ia3 import IA3, IA3Adapter
from peftly.methods.lora import LoRA, LoRAAdapter, LoRALayer
from peftly.methods.low_rank import lora_scaling
from peftly.methods.method import Adapter, Method, MethodConfig, Setup
from peftly.methods.p_tuning import PTuning, PTuningAdapter
from peftly.methods.prefix_tuning import PrefixTuning, PrefixTuningAdapter, PTuningV2, PTuningV2Adapter
from peftly.methods.prompt_tuning import PromptTuning, PromptTuningAdapter
from peftly.methods.selective import Full, FullAdapter, Selective, SelectiveAdapter
from peftly.methods.soft_prompt import PromptAdapter, token_embeddings

__all__ = [
    "IA3",
    "METHODS",
    "Adapter",
    "AdapterConfig",
    "BitFit",
    "DoRA",
    "Full",
    "LoRA",
    "LoRALayer",
    "Method",
    "MethodConfig",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptAdapter",
    "PromptTuning",
    "Selective",
    "Setup",
    "lora_scaling",
    "token_embeddings",
]

METHODS: dict[str, Method] = {
    "prompt_tuning": Method(
        PromptTuningAdapter,
        PromptTuning,
        summary="embeddings of virtual tokens in front of the text",
        paper="arXiv:2104.08691",
        learning_rate=1.2e-2,
        mergeable=False,
        identity_at_init=False,
    ),
    "p_tuning": Method(
        PTuningAdapter,
        PTuning,
        summary="virtual tokens that a small network computes",
        paper="arXiv:2103.10385",
        learning_rate=1e-2,
        mergeable=False,
        identity_at_init=False,
    ),
    "prefix_tuning": Method(
        PrefixTuningAdapter,
        PrefixTuning,
        summary="keys and values of every layer, in front of the text",
        paper="arXiv:2101.00190",
        learning_rate=1e-2,
        mergeable=False,
        identity_at_init=False,
        packs=False,
    ),
    "p_tuning_v2": Method(
        PTuningV2Adapter,
        PTuningV2,
        summary="keys and values as in prefix tuning, and the classifier",
        paper="arXiv:2110.07602",
        learning_rate=2e-2,
        mergeable=False,
        identity_at_init=False,
        packs=False,
    ),
    "adapter": Method(
        BottleneckAdapter,
        AdapterConfig,
        summary="bottleneck networks in every block",
        paper="arXiv:1902.00751",
        learning_rate=1e-3,
        mergeable=False,
        identity_at_init=True,
    ),
    "lora": Method(
        LoRAAdapter,
        LoRA,
        summary="low-rank updates of linear layers",
        paper="arXiv:2106.09685",
        learning_rate=5e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "dora": Method(
        DoRAAdapter,
        DoRA,
        summary="magnitudes and low-rank updates of linear layers",
        paper="arXiv:2402.09353",
        learning_rate=5e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "ia3": Method(
        IA3Adapter,
        IA3,
        summary="scaling vectors on keys, values and feed-forward activations",
        paper="arXiv:2205.05638",
        learning_rate=1e-2,
        mergeable=True,
        identity_at_init=True,
    ),
    "bitfit": Method(
        BitFitAdapter,
        BitFit,
        summary="copies of the bias vectors",
        paper="arXiv:2106.10199",
        learning_rate=3e-3,
        mergeable=True,
        identity_at_init=True,
    ),
    "selective": Method(
        SelectiveAdapter,
        Selective,
        summary="copies of the head, the last blocks or the normalisations",
        paper="-",
        learning_rate=1e-4,
        mergeable=True,
        identity_at_init=True,
    ),
    "full": Method(
        FullAdapter,
        Full,
        summary="copies of all parameters, as a baseline",
        paper="-",
        learning_rate=2e-5,
        mergeable=True,
        identity_at_init=True,
    ),
}
