"""The public namespace: what it holds, and that it holds it whatever was imported before."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import peft
import pytest

import peftly
import peftly.peft
from peftly.object_names import OTHER_OBJECTS, PEFT_NAMES


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
        "convert",
        "export",
        "generate",
        "load",
        "load_adapter",
        "load_base",
        "load_data",
        "merge",
        "open_run",
        "predict",
        "find_learning_rate",
        "LearningRateTest",
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


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("LoraConfig", "use peftly.LoRA, or from peftly.peft import LoraConfig"),
        ("PromptTuningInit", "from peftly.peft import PromptTuningInit"),
        ("get_peft_model", "use peftly.attach"),
        (
            "PeftModelForCausalLM",
            "use peftly.load(adapter) for base and adapter, or peftly.load_adapter(model, adapter",
        ),
        ("prepare_model_for_kbit_training", "leave it out: peftly.attach and peftly.train prepare a quantised base"),
        ("TrainingArguments", "use peftly.TrainConfig"),
        ("Lora", "did you mean peftly.LoRA?"),
        ("load_adapters", "did you mean peftly.load_adapter?"),
    ],
)
def test_a_name_of_another_tool_has_advice(name, advice):
    with pytest.raises(AttributeError, match=f"^module 'peftly' has no attribute '{name}'; {re.escape(advice)}"):
        getattr(peftly, name)
    assert not hasattr(peftly, name)


def test_an_import_of_a_name_of_another_tool_has_the_advice():
    with pytest.raises(ImportError, match=r"has no attribute 'LoraConfig'; use peftly\.LoRA"):
        exec("from peftly import LoraConfig")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from peftly import nothing")


def test_advised_names_exist():
    advised = {name for advice in OTHER_OBJECTS.values() for name in re.findall(r"peftly\.(\w+)", advice)}
    assert advised <= set(peftly.__all__)
    assert set(PEFT_NAMES) == set(peftly.peft.__all__)
    assert not set(OTHER_OBJECTS) & set(peftly.__all__)
    classes = ("LoraConfig", "PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig", "IA3Config")
    assert {name for name in vars(peft) if name.startswith(("PeftModel", "AutoPeft")) or name in classes} <= set(
        OTHER_OBJECTS
    )
