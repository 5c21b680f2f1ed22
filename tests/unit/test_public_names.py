"""The public namespace: what it holds, and that it holds it whatever was imported before."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import peftly


def test_names():
    assert set(peftly.__all__) == {
        "IA3",
        "METHODS",
        "AdapterConfig",
        "Base",
        "BitFit",
        "DataConfig",
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
        "Quantization",
        "Selective",
        "TrainConfig",
        "TrainResult",
        "AdapterError",
        "BaseModelError",
        "ConfigError",
        "DataError",
        "MergeError",
        "MethodError",
        "PeftlyError",
        "TrainingError",
        "Callback",
        "__version__",
        "attach",
        "attached",
        "cache_adapter_tensors",
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
        "load_data",
        "merge",
        "open_run",
        "save_adapter",
        "save_merged",
        "set_adapters",
        "tag_words",
        "train",
        "train_together",
        "trainable_parameters",
        "use_adapters",
        "use_prompt_positions",
    }


def test_no_module_hides_a_name():
    for module in pkgutil.walk_packages(peftly.__path__, "peftly."):
        if module.name != "peftly.__main__":
            importlib.import_module(module.name)
    for name in peftly.__all__:
        assert not inspect.ismodule(getattr(peftly, name)), name
    assert dir(peftly) == sorted(peftly.__all__)


def test_every_public_function_and_class_is_documented():
    for name in peftly.__all__:
        found = getattr(peftly, name)
        if callable(found):
            assert inspect.getdoc(found), name


def test_importing_peftly_imports_nothing_heavy():
    code = "import sys, peftly; print(sorted({'torch', 'transformers', 'pydantic', 'datasets'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
