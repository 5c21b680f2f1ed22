"""The one list of methods. A new method is a file in this folder and a line here."""

from peftly.methods._method import Adapter, Method, MethodConfig, Setup
from peftly.methods.lora import LoRA, LoRAAdapter
from peftly.methods.prompt_tuning import PromptTuning, PromptTuningAdapter

__all__ = ["METHODS", "Adapter", "LoRA", "Method", "MethodConfig", "PromptTuning", "Setup"]

METHODS: dict[str, Method] = {
    "prompt_tuning": Method(
        PromptTuningAdapter,
        PromptTuning,
        summary="a few rows in front of every text",
        paper="arXiv:2104.08691",
        learning_rate=6e-3,
        mergeable=False,
        identity_at_init=False,
    ),
    "lora": Method(
        LoRAAdapter,
        LoRA,
        summary="a low-rank change of linear layers",
        paper="arXiv:2106.09685",
        learning_rate=5e-4,
        mergeable=True,
        identity_at_init=True,
    ),
}
