"""Model types for which vLLM serves LoRA adapters, by vLLM's own tables.

The tables are `docs/models/supported_models.md` and `docs/models/pooling_models/embed.md` of vLLM's repository at
commit 0046f770 (2026). Only models that transformers has too are listed, by the `model_type` of their config. vLLM runs
a model that is in neither list with the code of transformers, which takes LoRA adapters where vLLM can run it.
"""

__all__ = ["WITHOUT_LORA", "WITH_LORA"]

_WITH = (
    "afmoe apertus arcee audioflamingo3 blip-2 cohere cohere2 cohere2_moe cwm deepseek_v2 deepseek_v3 deepseek_v32 "
    "ernie4_5 ernie4_5_moe exaone4 exaone4_5 falcon_h1 gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text glm glm4 "
    "glm4_moe glm4_moe_lite glm4v glm4v_moe glm_moe_dsa glm_ocr gpt_bigcode gpt_oss granite granite4_vision "
    "granite_speech granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_dense "
    "hunyuan_v1_moe hy_v3 hyperclovax idefics3 internlm3 internvl jamba lfm2 lfm2_moe lfm2_vl lighton_ocr llama "
    "llama4 llava llava_next llava_next_video longcat_flash minicpm3 minimax_m2 mistral mistral3 mixtral nemotron "
    "nemotron_h olmo olmo2 olmo3 olmo_hybrid opt paligemma phi phi3 phi4_multimodal phimoe qwen2 qwen2_5_vl "
    "qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe seed_oss smollm3 "
    "smolvlm solar_open starcoder2 vaultgemma"
)
WITH_LORA = frozenset(_WITH.split())
"""Types with a mark in the column LoRA."""

_WITHOUT = (
    "aria bert bloom chameleon clip cohere2_vision dbrx deepseek_v4 ernie4_5_vl_moe exaone_moe falcon falcon_mamba "
    "flex_olmo gemma3n gemma3n_text gpt2 gpt-sw3 gpt_neox gptj hrm_text jais2 kimi_linear llava_onevision mamba "
    "mamba2 mellum mimo_v2_flash modernbert mpt olmoe paddleocr_vl qwen2_audio roberta siglip siglip2 stablelm "
    "xlm-roberta zamba2"
)
WITHOUT_LORA = frozenset(_WITHOUT.split())
"""Types without a mark in the column LoRA."""
