"""peftly: parameter-efficient fine-tuning, from raw data to an adapter that other tools can load.

The public names are imported when they are first used, so that the command line's `--help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftly.adapt import (
        attach,
        attached,
        detach,
        set_adapters,
        trainable_parameters,
        use_adapters,
        use_places,
    )
    from peftly.base import Base, load_base
    from peftly.checkpoint import load, load_adapter, save_adapter
    from peftly.classification import classify, tag_words
    from peftly.combining import combine
    from peftly.ensemble import Ensemble, evaluate_ensemble
    from peftly.evaluation import Evaluation, evaluate
    from peftly.exporting import export
    from peftly.generation import generate
    from peftly.merged_model import save_merged
    from peftly.merging import merge
    from peftly.methods import (
        IA3,
        METHODS,
        AdapterConfig,
        BitFit,
        DoRA,
        Full,
        LoRA,
        PrefixTuning,
        PromptTuning,
        PTuning,
        PTuningV2,
        Selective,
    )
    from peftly.methods._quantized import dequantize
    from peftly.training import Job, TrainConfig, TrainResult, train, train_together

__all__ = [
    "IA3",
    "METHODS",
    "AdapterConfig",
    "Base",
    "BitFit",
    "DoRA",
    "Ensemble",
    "Evaluation",
    "Full",
    "Job",
    "LoRA",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptTuning",
    "Selective",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "attach",
    "attached",
    "classify",
    "combine",
    "dequantize",
    "detach",
    "evaluate",
    "evaluate_ensemble",
    "export",
    "generate",
    "load",
    "load_adapter",
    "load_base",
    "merge",
    "save_adapter",
    "save_merged",
    "set_adapters",
    "tag_words",
    "train",
    "train_together",
    "trainable_parameters",
    "use_adapters",
    "use_places",
]

__version__ = "0.1.0"

_HOME = {
    "IA3": "methods",
    "METHODS": "methods",
    "AdapterConfig": "methods",
    "Base": "base",
    "BitFit": "methods",
    "DoRA": "methods",
    "Ensemble": "ensemble",
    "Evaluation": "evaluation",
    "Full": "methods",
    "Job": "training",
    "LoRA": "methods",
    "PTuning": "methods",
    "PTuningV2": "methods",
    "PrefixTuning": "methods",
    "PromptTuning": "methods",
    "Selective": "methods",
    "TrainConfig": "training",
    "TrainResult": "training",
    "attach": "adapt",
    "attached": "adapt",
    "classify": "classification",
    "combine": "combining",
    "dequantize": "methods._quantized",
    "detach": "adapt",
    "evaluate": "evaluation",
    "evaluate_ensemble": "ensemble",
    "export": "exporting",
    "generate": "generation",
    "load": "checkpoint",
    "load_adapter": "checkpoint",
    "load_base": "base",
    "merge": "merging",
    "save_adapter": "checkpoint",
    "save_merged": "merged_model",
    "set_adapters": "adapt",
    "tag_words": "classification",
    "train": "training",
    "train_together": "training",
    "trainable_parameters": "adapt",
    "use_adapters": "adapt",
    "use_places": "adapt",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"peftly.{_HOME[name]}"), name)
    raise AttributeError(f"module 'peftly' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
