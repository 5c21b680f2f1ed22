"""Adapters to and from the formats of other tools. May import: `adapters` and below; not `training`, not `merging`.

formats            the list of formats, and `export`
peft               an adapter for Hugging Face PEFT
pooled_head        a classifier whose head pools the token states, for PEFT
vllm               a LoRA adapter for vLLM
vllm_models        the models for which vLLM serves LoRA adapters
prompt_embeddings  a soft prompt as a tensor
gguf               a merged model for llama.cpp
gguf_lora          a LoRA adapter for llama.cpp
gguf_tensors       names, order and dtypes of tensors in GGUF files
gguf_tokenizer     the tokenizer in a GGUF file
factors            the LoRA factors in the file of an adapter
saved_adapter      the files of an adapter, read for an export
request            the request to the writer of a format
output_folder      checks of the output folder
conversion         the list of formats to read, and `convert`
foreign            the files of other tools, read without running code
from_peft          PEFT's `adapter_model.bin`
from_mlx           mlx-lm
from_litgpt        litgpt
from_torchtune     torchtune
from_adapterhub    the library `adapters`
"""

from peftly.exporting.conversion import convert
from peftly.exporting.formats import FORMATS, Exported, export
from peftly.exporting.saved_adapter import SavedAdapter, base_notes
from peftly.exporting.vllm import serve_command

__all__ = ["FORMATS", "Exported", "SavedAdapter", "base_notes", "convert", "export", "serve_command"]
