"""Why a test of PEFT fails with peftly.peft: rules on the name of the test, its error and the line that raised it."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["FAULT", "reason"]

INTERNALS = "internals of PEFT"
SCOPE = "out of scope"
PEFT_IS_WRONG = "PEFT is wrong, or has a limit that peftly does not have"
OFFLINE = "needs the Hub, a GPU or diffusers"
FAULT = "a fault of ours"

_MODULES = (
    r"tuners\.|mapping\.|utils\.(other|_|constants|quantization|integrations|transformers_weight)|utils\.[A-Z_a-z]+$"
)
_OTHERS = (
    r"\w+(Config|Model|Sampler)\b|helpers\.|optimizers\.|utils\.(hotswap|merge_utils|loftq)|(get|set)_base_model_state|"
    r"convert_to_lora|save_as_lora|\w*(eva|EVA|loftq|corda|arrow|loraga|Montecl)\w*|tuners\.lora\.(corda|eva|monteclora)"
)
_ATTRIBUTES = (
    "prefix|lora_\\w+|ia3_l|scaling|r|alpha|base_layer|modules_to_save|original_module|prompt_encoder|word_embeddings|"
    "targeted_\\w+|supports_lora_conversion|_\\w+|merged|merge|merged_adapters|unmerge|unloaded|active_adapter|"
    "active_adapters|use_dora|use_rslora|fan_in_fan_out|lora_variant|token_adapter|rank_pattern|adapter_model_type|"
    "adapter_layer_names|tuner_layer_cls|disable_adapters|set_scale|scale_layer|unscale_layer|in_features|transform|"
    "prompt_tokens|parametrizations|weight|embedding|get_delta_weight|cast_input_dtype_enabled|base_model_torch_dtype"
)

RULES: list[tuple[str, str, str]] = [
    # what a test asks for: pattern over "id | error: message | line", class, note
    (rf"NotInPeftly: (isinstance )?peft\.(tuners\.lora\.config\.)?({_OTHERS})", SCOPE, "another method or a helper"),
    (r"Config is no configuration of peftly", SCOPE, "another method"),
    (r"NotInPeftly: (isinstance )?peft\.\w*(Embedding|Encoder)\b", INTERNALS, "a class of PEFT's modules"),
    (rf"NotInPeftly: (isinstance )?peft\.({_MODULES})", INTERNALS, "a private name of PEFT"),
    (r"NotInPeftly: peft\.[A-Z_]+\b", INTERNALS, "a table of PEFT's classes"),
    (r"ConfigError: peftly has no \w+ of PEFT's LoraConfig", SCOPE, "a setting that is refused by name"),
    (r"ConfigError: peftly has no init_lora_weights", SCOPE, "an initialisation that is refused by name"),
    (r"uses target_parameters|TargetParameters|target_parameter|test_target_parameters", SCOPE, "target_parameters"),
    (r"(?i)\b(kasa|velora|monteclora|eva|corda|loftq|olora|qalora|alora|bdlora|arrow|hotswap)", SCOPE,
     "another variant"),
    (r"safe_serialization=False", SCOPE, "pickled files are refused by name"),
    (r"(MethodError|AdapterError): .*(is not in peftly[,;]|has no (\w+|'\w+'); )", SCOPE, "refused by name"),
    (r"add_weighted_adapter has no", SCOPE, "refused by name"),
    (r"combination_type='\w+' is not in peftly", SCOPE, "refused by name"),
    (r"only adapters that do nothing but add to a weight can be weighted", SCOPE, "weights of (IA)³"),
    (r"prefix_tuning needs a (model with a key-value|transformers)|a prefix needs keys and values of one", SCOPE,
     "a prefix on this base, refused by name"),
    (r"match(es)? no linear layer.*|'(conv\w*|mha|\w*[Cc]onv\w*)'.*target_modules", SCOPE,
     "layers that are neither linear nor embeddings, and embeddings for DoRA and (IA)³"),
    (rf"AttributeError: .* has no attribute '({_ATTRIBUTES})'", INTERNALS, "an attribute of PEFT's layers or tuners"),
    (r"isinstance\(.*(Wrapper|Layer|Linear)|ModulesToSaveWrapper", INTERNALS, "a class of PEFT's modules"),
    (r"Regex pattern did not match", INTERNALS, "the words of an error; the type is the same"),
    (r"MethodError: this model has the adapter '\w+' already|test_get_peft_model_(repeated|warns_when_rel)", SCOPE,
     "a second wrapping of one model, refused with what to do"),
    (r"key_mapping|ignore_mismatched_sizes|resized_embedding", SCOPE, "renaming or leaving out tensors while loading"),
    (r"fsdp_wrapped_learnable_bias|with_bias_argument|test_requires_grad_|expected .* to require gradients", INTERNALS,
     "PEFT trains the bias or the module of the base itself; peftly a copy"),
    (r"forward\(\) got an unexpected keyword argument 'adapter_names'", INTERNALS,
     "calls forward, past the model; model(..., adapter_names=...) works"),
    (r"TestModelAndLayerStatus|LayerStatus|ModelStatus", INTERNALS, "names and classes of PEFT's layers in a status"),
    (r"low_cpu_mem_usage", INTERNALS, "parameters on the meta device while loading"),
    (r"inject_from_state_dict|inject_adapter_in_model|transient_attribute|'_Missing'|__dataclass_fields__", INTERNALS,
     "PEFT's layers, or transformers' own add_adapter, which needs the package peft"),
    (r"BaseModelView|has no attribute '(model|get_base_layer|set_adapter|enable_adapters)'|'float' object", INTERNALS,
     "PEFT's modules around the model and its layers"),
    (r"assert param.grad is None", INTERNALS, "which parameters are the adapter's, by PEFT's names; gradients agree"),
    (r"allclose\(output_base, output_adapter\d, atol", OFFLINE, "the random stand-in changes too little"),
    (r"test_lora_use_dora_linear", INTERNALS, "a difference of 1e-7, one unit of rounding"),
    (r"ephemeral_gpu_offload", SCOPE, "offloading of DoRA"),
    (r"_eva_|EvaConfig", SCOPE, "another variant"),
    (r"DID NOT WARN.*RuntimeWarning.*UserWarning\('(alpha|rank)_pattern has keys", INTERNALS, "the class of a warning"),
    (r"missing_keys_warning", INTERNALS, "overwrites model.state_dict, which peftly does not save from"),
    (r"test_dora_save_and_load_remapping|prepare_inputs_for_generation_4d|test_repr_", INTERNALS, "names"),
    (r"test_existing_model_card", SCOPE, "a README.md of the user stays as it is"),
    (r"test_non_existing_model_card", INTERNALS, "the length of a card"),
    (r"test_warning_name_", INTERNALS, "a warning of PEFT's about the names of arguments"),
    (r"(warn_for_tied|fixes_tie_word|targeting_lora_to_embedding|save_embedding_layers_excludes)", PEFT_IS_WRONG,
     "the base never changes, so its embedding need not be saved; merging unties it"),
    (r"assert not dummy_output.requires_grad", INTERNALS, "the embedding serves the virtual tokens"),
    (r"import allowlist", INTERNALS, "the words of an error; classes outside transformers are refused as well"),
    (r"(cayley|psoft|hotswap|mica)", SCOPE, "another method or variant"),
    (r"nested_ignores_modules_to_save|test_weight_tying|test_warning_name_custom", INTERNALS, "words of a warning"),
    (r"test_fp32_cast|auto_clear_cache_default", SCOPE, "the base stays in its own dtype, so nothing is converted"),
    (r"MethodError: .*(changed twice by one adapter|can replace their joint effect|of this call is all padding)", SCOPE,
     "refused, with what to do"),
    (r"(test_unload_adapter|adding_multiple_adapters_with_bias|multiple_configs_with_bias|generate_pos_args|"
     r"requires_grad_prompt_learning|targets_module_dict_raises|overlapping_modules_to_save_raises|"
     r"same_modules_to_save_raises|pattern_and_rslora_raises|pissa_olora|test_prefix_tuning .*DID NOT RAISE|"
     r"incompatible_mamba|with_dora_raises|training_mode_raises)\S*( \S+)* \| (Failed|AssertionError): ", PEFT_IS_WRONG,
     "PEFT raises or warns of a limit; peftly computes it"),
    (r"(weight_tying|tied|targeting_lora_to_embedding|no_tied_module|no_embed_lora).*DID NOT WARN",
     PEFT_IS_WRONG, "copies of tied modules are tied here, and merging takes care of them"),
    (r"needs the Hub|couldn't connect|Can't load image processor|LocalEntryNotFound|image processor", OFFLINE, ""),
]  # fmt: skip
"""Rules in the order in which they are tried."""


def reason(row: dict[str, Any], in_peft: str) -> tuple[str, str]:
    """Return the class of a failed test and a note.

    Args:
        row: outcome of the test.
        in_peft: outcome of the same test with PEFT itself.
    """
    text = f"{row['id']} | {row['error']}: {row['message']} | {row.get('test_line', '')}".replace("\n", " ")
    for pattern, found, note in RULES:
        if re.search(pattern, text):
            return found, note
    if in_peft == "failed":
        return OFFLINE, "fails with PEFT itself, with these stand-ins"
    return FAULT, ""
