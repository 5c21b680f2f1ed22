"""The names of Hugging Face PEFT on the functions of peftly: a script changes its import and nothing else.

- `names`: tasks, methods and initialisations
- `config`: base class of the configurations, which hold PEFT's arguments
- `configs`: configurations of prompt tuning, P-tuning, prefix tuning and (IA)³
- `lora_config`: configuration of LoRA and DoRA
- `default_targets`: layers that PEFT adapts where a configuration names none
- `unavailable`: names of PEFT that are refused, and what to do instead
- `translation`: a configuration of PEFT as the settings of a method, and back
"""
