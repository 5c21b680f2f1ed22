"""Names of classes and functions in other tools, and the ones of peftly with the same purpose.

The tools are PEFT, transformers, TRL, AdapterHub and Unsloth. Nothing here is an alias: an error names the right name.
"""

import difflib
from collections.abc import Iterable

__all__ = ["OTHER_OBJECTS", "PEFT_NAMES", "missing_attribute"]

OTHER_OBJECTS = {
    **dict.fromkeys(("LoraConfig", "LoraModel"), "use peftly.LoRA"),
    **dict.fromkeys(("AdaLoraConfig", "AdaLoraModel"), "peftly has no AdaLoRA; use peftly.LoRA"),
    "PromptTuningConfig": "use peftly.PromptTuning",
    "PromptEncoderConfig": "use peftly.PTuning",
    "PrefixTuningConfig": "use peftly.PrefixTuning",
    "IA3Config": "use peftly.IA3",
    "LoftQConfig": 'use peftly.LoRA(init="qera") on a quantised base',
    **dict.fromkeys(("get_peft_model", "inject_adapter_in_model", "add_adapter"), "use peftly.attach"),
    **dict.fromkeys(
        (
            *("PeftModel", "PeftMixedModel", "AutoPeftModel", "from_pretrained"),
            *(
                f"{prefix}For{task}"
                for prefix in ("PeftModel", "AutoPeftModel")
                for task in (
                    *("CausalLM", "FeatureExtraction", "QuestionAnswering", "Seq2SeqLM"),
                    *("SequenceClassification", "TokenClassification"),
                )
            ),
        ),
        "use peftly.load(adapter) for base and adapter, or peftly.load_adapter(model, adapter) on a model",
    ),
    **dict.fromkeys(("PeftConfig", "get_peft_config"), "use the class of a method, such as peftly.LoRA"),
    **dict.fromkeys(("PeftType", "PEFT_TYPE_TO_CONFIG_MAPPING"), "use peftly.METHODS"),
    "TaskType": 'use the argument task of peftly.load_base, a text: "causal_lm" for CAUSAL_LM',
    "prepare_model_for_kbit_training": "leave it out: peftly.attach and peftly.train prepare a quantised base",
    **dict.fromkeys(
        ("print_trainable_parameters", "get_nb_trainable_parameters"),
        "use peftly.trainable_parameters, or model.num_parameters(only_trainable=True) of a transformers model",
    ),
    "get_peft_model_state_dict": "use peftly.trainable_parameters, or peftly.save_adapter for the files",
    **dict.fromkeys(("set_peft_model_state_dict", "load_peft_weights"), "use peftly.load_adapter"),
    **dict.fromkeys(("merge_and_unload", "merge_adapter"), "use peftly.merge"),
    **dict.fromkeys(("unload", "unmerge_adapter", "delete_adapter"), "use peftly.detach"),
    **dict.fromkeys(("set_adapter", "enable_adapters"), "use peftly.set_adapters"),
    **dict.fromkeys(("disable_adapter", "disable_adapters"), "use peftly.use_adapters"),
    "add_weighted_adapter": "use peftly.combine",
    "save_pretrained": "use peftly.save_adapter",
    "BitsAndBytesConfig": "use peftly.Quantization",
    **dict.fromkeys(("TrainingArguments", "SFTConfig"), "use peftly.TrainConfig"),
    **dict.fromkeys(("Trainer", "SFTTrainer"), "use peftly.train"),
    **dict.fromkeys(("AutoAdapterModel", "FastLanguageModel", "FastModel"), "use peftly.load_base"),
    **dict.fromkeys(("BnConfig", "SeqBnConfig", "DoubleSeqBnConfig", "ParBnConfig"), "use peftly.AdapterConfig"),
}
"""Advice by the name in another tool."""

PEFT_NAMES = [
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
"""Names of PEFT that `peftly.peft` has."""


def missing_attribute(name: str, names: Iterable[str]) -> tuple[str, bool]:
    """Return a message for a name that peftly does not have, and whether another tool has it.

    Args:
        name: the missing name.
        names: the public names of peftly.
    """
    message = f"module 'peftly' has no attribute {name!r}"
    as_in_peft = f"from peftly.peft import {name}" if name in PEFT_NAMES else ""
    if advice := ", or ".join(filter(None, [OTHER_OBJECTS.get(name), as_in_peft])):
        return f"{message}; {advice}", True
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"{message}; did you mean peftly.{lower[close[0]]}?" if close else message, False
