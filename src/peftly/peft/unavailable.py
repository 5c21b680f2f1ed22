"""Names of PEFT that peftly.peft does not have, and what to do instead."""

__all__ = ["UNAVAILABLE"]

_OTHER_METHODS = (
    "AdaLora Adamss AdaptionPrompt BOFT Beft C3A CPT Cartridge Deft Delora FourierFT Frod Glora Gralora HRA Hira "
    "LNTuning Lily LoHa LoKr Miss MultitaskPromptTuning OFT OSF Peanut Poly Psoft Pvera RandLora Road Shadow Shira "
    "Supertuning TinyLora TrainableTokens UniLora VBLoRA Vera WaveFT XLora"
)

UNAVAILABLE = {
    **{
        f"{method}{end}": f"peftly does not have {method}; use LoraConfig, IA3Config or one of the prompt methods"
        for method in _OTHER_METHODS.split()
        for end in ("Config", "Model")
    },
    **dict.fromkeys(("LoraModel", "IA3Model"), "use get_peft_model; peftly changes the layers of the model in place"),
    **dict.fromkeys(
        ("PromptEmbedding", "PromptEncoder", "PrefixEncoder", "CPTEmbedding", "CartridgeEncoder"),
        "use get_peft_model; get_peft_model_state_dict has the trained values",
    ),
    "MultitaskPromptTuningInit": "peftly does not have MultitaskPromptTuning; use PromptTuningConfig",
    "LNTuningConfig": "use peftly.Selective(layer_norms=True, last_layers=0) with peftly.attach",
    "LoftQConfig": 'use peftly.LoRA(init="qera") with peftly.attach on a quantised base',
    "replace_lora_weights_loftq": 'use peftly.LoRA(init="qera") with peftly.attach on a quantised base',
    **dict.fromkeys(
        ("EvaConfig", "CordaConfig", "LoraGAConfig", "get_eva_state_dict", "initialize_lora_eva_weights"),
        'use LoraConfig(init_lora_weights="pissa")',
    ),
    "preprocess_loraga": 'use LoraConfig(init_lora_weights="pissa")',
    **dict.fromkeys(
        ("ArrowConfig", "create_arrow_model", "convert_to_lora", "save_as_lora"), "use add_weighted_adapter"
    ),
    **dict.fromkeys(
        ("BdLoraConfig", "KasaConfig", "MontecloraConfig", "VeloraConfig", "LoraRuntimeConfig"),
        "use a plain LoraConfig",
    ),
    "PeftMixedModel": "use get_peft_model and add_adapter: one model holds adapters of different methods",
    **dict.fromkeys(
        (
            *("PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_MIXED_MODEL_MAPPING"),
            "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
        ),
        "use PEFT_TYPE_TO_CONFIG_MAPPING",
    ),
    **dict.fromkeys(
        (
            *("compose_cartridge_adapters", "initialize_kv_prefix_from_past_key_values"),
            *("initialize_kv_prefix_from_text", "prompt_embeddings_from_past_key_values"),
        ),
        'use peftly.PrefixTuning(init="text", init_text=...) with peftly.attach',
    ),
    **dict.fromkeys(
        ("prepare_model_for_int8_training", "prepare_model_for_training"), "use prepare_model_for_kbit_training"
    ),
    "PeftWarning": "use UserWarning",
    "find_kappa_target_modules": 'use LoraConfig(target_modules="all-linear")',
    "shift_tokens_right": "use the labels of the model, which shift them",
    "bloom_model_postprocess_past_key_value": "leave it out; prefixes have the layout of each model",
    **dict.fromkeys(
        ("get_base_model_state_dict", "set_base_model_state_dict"), "use state_dict() of the model before the adapter"
    ),
}
"""Advice by the name in PEFT."""
