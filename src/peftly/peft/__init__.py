"""The names of Hugging Face PEFT on the functions of peftly: a script changes its import and nothing else.

names            tasks, methods and initialisations, as PEFT spells them
config           base class of PEFT's configurations
configs          configurations of prompt tuning, P-tuning, prefix tuning and (IA)³
lora_config      configuration of LoRA and DoRA
default_targets  layers that PEFT adapts where a configuration names none
translation      from configurations to settings of methods, and back
unavailable      names of PEFT that are refused, and what to do instead
wrapping         the class of a model becomes one of PEFT, and back
attaching        adapters put on a model by a configuration, or from files
trainable        number of parameters, and whether training changes them
state_dict       tensors of an adapter by PEFT's names
pickled          adapters whose weights are a pickle, as safetensors
status           state of the adapters, by layer and together
merging          adapters merged into the base
adapter_methods  methods of `PeftModel` that add, choose, merge and remove adapters
file_methods     methods of `PeftModel` about numbers, files and prompts
model            `PeftModel` and its classes by task
functions        PEFT's functions over models
helpers          PEFT's helpers
auto             `AutoPeftModel` and its classes by task
"""

import sys

from peftly.errors import MethodError as NoMatchingPeftModuleError
from peftly.errors import PeftlyError as PeftError
from peftly.peft.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from peftly.peft.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PromptLearningConfig, get_peft_config
from peftly.peft.configs import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peftly.peft.functions import (
    cast_mixed_precision_params,
    get_peft_model,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
)
from peftly.peft.lora_config import LoraConfig
from peftly.peft.model import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)
from peftly.peft.names import PeftType, PromptEncoderReparameterizationType, PromptTuningInit, TaskType
from peftly.peft.state_dict import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peftly.peft.status import get_layer_status, get_model_status
from peftly.peft.unavailable import UNAVAILABLE

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "IA3Config",
    "LoraConfig",
    "NoMatchingPeftModuleError",
    "PeftConfig",
    "PeftError",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "cast_mixed_precision_params",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]


def __getattr__(name: str) -> object:
    if name not in UNAVAILABLE:
        raise AttributeError(f"module 'peftly.peft' has no attribute {name!r}")
    message = f"peftly.peft has no {name}; {UNAVAILABLE[name]}"
    # `from peftly.peft import AdaLoraConfig` replaces an AttributeError by a text of its own, without the advice.
    is_import = sys._getframe(1).f_code.co_name == "_handle_fromlist"
    raise (ImportError if is_import else AttributeError)(message)
