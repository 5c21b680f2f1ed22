"""The names of Hugging Face PEFT on the functions of peftly: a script changes its import and nothing else.

- `configs`: the configurations, which hold PEFT's arguments and become the settings of a method.
"""
