"""Names of settings in other tools, and the settings of peftly with the same purpose.

The tools are transformers (`TrainingArguments`), TRL, PEFT, bitsandbytes, axolotl, LLaMA-Factory, ms-swift, Unsloth,
Lightning and AdapterHub. Nothing here is an alias: a setting has one name, and an error names it.
"""

from typing import Any, NamedTuple

from peftly.setting_names.not_needed import NOT_NEEDED

__all__ = ["OTHER_NAMES", "OtherName", "other_name"]


class OtherName(NamedTuple):
    """The setting of peftly for the setting of another tool.

    Attributes:
        settings: paths of the settings with the same purpose; those that a method does not have are left out. Empty if
            there is none.
        value: value that stands for "true" in the other tool; None: the values are of the same kind.
        note: conversion of the value, or the reason for which the setting is not needed.
    """

    settings: tuple[str, ...]
    value: str | None = None
    note: str = ""

    def advice(self, given: object = None) -> str:
        """Return advice for the value that was given, without a verb of its own: "use …", "set …" or "leave it out"."""
        if not self.settings or (self.value is not None and given is False):
            reason = self.note if not self.settings else "false is the default"
            return f"leave it out: {reason}"
        names = " or ".join(self.settings)
        advice = f"use {names}" if self.value is None else f"set {names} to {self.value}"
        return f"{advice} ({self.note})" if self.note else advice


_EPOCHS = "a whole number; for part of an epoch use train.max_steps"
_FRACTION = "a fraction of the training rows, such as 0.1; for a file use data.validation"
_TASKS = (
    "CAUSAL_LM is causal_lm, SEQ_2_SEQ_LM is seq2seq_lm, SEQ_CLS is sequence_classification, TOKEN_CLS is "
    "token_classification"
)
_METHOD = "see peftly methods; qlora is lora with quantization nf4"
_OPTIMIZERS = "adamw_torch is adamw, adamw_bnb_8bit is adamw_8bit, paged_adamw_32bit is paged_adamw"

_SAME_PURPOSE = (
    # names in other tools; setting; value for "true"; note
    ("num_train_epochs num_epochs max_epochs n_epochs train_epochs", "train.epochs", None, _EPOCHS),
    ("max_train_steps total_steps num_train_steps", "train.max_steps", None, ""),
    ("lr learning_rate_init peak_lr base_lr", "train.learning_rate", None, ""),
    (
        "per_device_train_batch_size per_gpu_train_batch_size micro_batch_size train_batch_size mini_batch_size "
        "train_micro_batch_size_per_gpu",
        "train.batch_size",
        None,
        "examples of a batch on each process",
    ),
    (
        "total_batch_size global_batch_size effective_batch_size total_train_batch_size",
        "train.gradient_accumulation_steps",
        None,
        "the product of train.batch_size, train.gradient_accumulation_steps and the number of processes",
    ),
    (
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size validation_batch_size",
        "train.evaluation_batch_size",
        None,
        "",
    ),
    (
        "grad_accum gradient_accumulation grad_accumulation_steps accumulate_grad_batches accumulation_steps",
        "train.gradient_accumulation_steps",
        None,
        "",
    ),
    ("lr_scheduler scheduler scheduler_type lr_schedule learning_rate_scheduler", "train.lr_scheduler_type", None, ""),
    ("num_warmup_steps", "train.warmup_steps", None, ""),
    ("warmup_proportion warmup_fraction", "train.warmup_ratio", None, ""),
    ("optim", "train.optimizer", None, _OPTIMIZERS),
    ("wd", "train.weight_decay", None, ""),
    ("grad_clip gradient_clipping gradient_clip_val clip_grad_norm max_norm", "train.max_grad_norm", None, ""),
    ("random_state random_seed data_seed seed_everything", "train.seed", None, ""),
    (
        "eval_strategy evaluation_strategy evals_per_epoch val_check_interval eval_every",
        "train.eval_steps",
        None,
        "a number of steps; without it one evaluation per epoch",
    ),
    (
        "save_strategy saves_per_epoch save_every",
        "train.save_steps",
        None,
        "a number of steps; the best adapter is always saved",
    ),
    ("save_total_limit", "train.keep_checkpoints", None, "checkpoints of an unfinished run"),
    (
        "patience early_stopping early_stopping_rounds early_stopping_steps",
        "train.early_stopping_patience",
        None,
        "a number of evaluations",
    ),
    ("early_stopping_delta min_delta early_stopping_min_delta", "train.early_stopping_threshold", None, ""),
    ("activation_checkpointing use_gradient_checkpointing", "train.gradient_checkpointing", None, ""),
    (
        "sample_packing neat_packing eval_packing eval_sample_packing padding_free",
        "train.packing",
        None,
        "on by default",
    ),
    (
        "deepspeed fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap fsdp_final_state_dict_type",
        "train.fsdp",
        None,
        "true shards the base over the processes of torchrun",
    ),
    ("loggers log_with tracker trackers", "train.report_to", None, "a name or a list of names"),
    (
        "use_wandb wandb wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model wandb_mode",
        "train.report_to",
        None,
        "wandb; WANDB_MODE=online in the environment sends the run, and WANDB_PROJECT names the project",
    ),
    (
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name hf_mlflow_log_artifacts",
        "train.report_to",
        None,
        "mlflow; MLFLOW_TRACKING_URI names a server",
    ),
    (
        "use_swanlab swanlab_project swanlab_mode swanlab_workspace swanlab_run_name swanlab_api_key",
        "train.report_to",
        None,
        "swanlab; SWANLAB_MODE=online sends it",
    ),
    ("use_tensorboard", "train.report_to", None, "tensorboard"),
    (
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        "train.report_to",
        None,
        "trackio; TRACKIO_SPACE_ID names a Space",
    ),
    ("bf16 bfloat16 pure_bf16", "dtype", "bfloat16", ""),
    ("float32 fp32", "dtype", "float32", ""),
    ("use_mps_device", "device", "mps", ""),
    ("adafactor", "train.optimizer", "adafactor", ""),
    (
        "disable_gradient_checkpointing use_unsloth_gc",
        "train.gradient_checkpointing",
        None,
        "true, false, or where it is needed by default",
    ),
    (
        "max_memory gpu_memory_limit offload_folder quantization_device_map",
        "device_map",
        None,
        "auto, or by module path",
    ),
    ("pretraining_dataset", "data.train", None, "rows with the field text are plain text"),
    ("dataset_dir", "data.train", None, "paths are relative to the folder in which peftly is typed"),
    ("truncation_strategy truncation_mode", "data.long_texts", None, "cut or pieces, for plain texts"),
    (
        "system default_system default_system_message",
        "data.template",
        None,
        "a template with this text; in conversations a message of the role system",
    ),
    (
        "predict_with_generate compute_accuracy do_causal_lm_eval eval_causal_lm_metrics include_for_metrics "
        "include_inputs_for_metrics",
        "train.generation_examples",
        None,
        "answers that are generated and scored; the other scores follow from the task",
    ),
    ("fp16 half pure_fp16 float16", "dtype", "float16", ""),
    (
        "torch_dtype precision mixed_precision model_dtype infer_dtype",
        "dtype",
        None,
        "auto, float32, bfloat16 or float16",
    ),
    ("use_cpu no_cuda", "device", "cpu", ""),
    ("output_dir out_dir output_path save_dir default_root_dir", "out", None, ""),
    (
        "model_name_or_path base_model base_model_name_or_path model model_name model_id model_path "
        "pretrained_model_name_or_path base_model_config",
        "base",
        None,
        "",
    ),
    ("task_type", "task", None, _TASKS),
    ("load_in_4bit load_4bit", "quantization", "nf4", ""),
    ("load_in_8bit load_8bit", "quantization", "int8", ""),
    ("quantization_bit quant_bits bits", "quantization", None, "4 is nf4, 8 is int8"),
    (
        "quantization_config bnb_config bnb_config_kwargs quantization_method quant_method",
        "quantization",
        None,
        "nf4, fp4 or int8, or a mapping with kind",
    ),
    ("bnb_4bit_quant_type quant_type quantization_type", "quantization.kind", None, "nf4 or fp4"),
    ("bnb_4bit_use_double_quant double_quantization double_quant", "quantization.double", None, "true by default"),
    ("bnb_4bit_compute_dtype compute_dtype", "quantization.compute_dtype", None, ""),
    (
        "max_seq_length max_seq_len sequence_len seq_length seq_len cutoff_len model_max_length context_length "
        "max_source_length max_prompt_length max_prompt_len max_len block_size",
        "data.max_length",
        None,
        "tokens of an example",
    ),
    (
        "dataset datasets dataset_name dataset_path data_path data_files train_file train_data train_dataset "
        "training_file train_data_path",
        "data.train",
        None,
        "a file, a folder or a Hub id",
    ),
    (
        "dataset_config_name dataset_config dataset_subset hf_dataset_subset dataset_split",
        "data.train",
        None,
        "user/name:configuration[split]",
    ),
    (
        "validation_file eval_dataset eval_file val_dataset val_data valid_file validation_data dev_file test_datasets",
        "data.validation",
        None,
        "",
    ),
    ("test_file test_data test_dataset", "data.test", None, ""),
    (
        "val_set_size val_size eval_size validation_size split_dataset_ratio",
        "data.validation_fraction",
        None,
        _FRACTION,
    ),
    ("validation_split_percentage", "data.validation_fraction", None, "a fraction: 10 percent is 0.1"),
    (
        "dataset_text_field text_column text_field label_column response_column target_column output_column",
        "data.target",
        None,
        "the field to learn; the field text is plain text",
    ),
    (
        "prompt_template template instruction_template formatting_func prompt_style",
        "data.template",
        None,
        "the prompt with its fields; a known one: data.format; a conversation takes the base's chat template",
    ),
    ("chat_template_path chat_template_jinja conversation_template", "data.chat_template", None, "a file or its text"),
    ("adapter peft_type finetuning_type train_type tuner_type peft_method", "method", None, _METHOD),
    ("peft_config lora_config lora peft adapter_config", "method", None, "a mapping with name, rank, alpha, …"),
    ("training_args training_arguments training trainer", "train", None, ""),
    ("r lora_r lora_rank lora_dim", "method.rank", None, ""),
    ("lora_alpha", "method.alpha", None, ""),
    ("lora_dropout lora_dropout_rate", "method.dropout", None, ""),
    (
        "lora_target lora_target_modules lora_modules lora_target_linear target_layers",
        "method.target_modules",
        None,
        "all-linear by default",
    ),
    ("use_rslora lora_use_rslora peft_use_rslora", "method.rslora", None, ""),
    ("use_dora peft_use_dora lora_use_dora", "method", "dora", "in Python peftly.DoRA"),
    ("init_lora_weights lora_init peft_init_lora_weights init_weights", "method.init", None, ""),
    ("pissa_init", "method.init", "pissa", ""),
    ("loftq_config", "method.init", "qera", "on a quantised base"),
    (
        "freeze_trainable_layers unfrozen_parameters freeze_trainable_modules freeze_parameters trainable_parameters",
        "method",
        "selective",
        "",
    ),
    ("loraplus_lr_ratio loraplus_ratio lorap_lr_ratio", "method.lora_plus_ratio", None, ""),
    (
        "additional_target lora_modules_to_save additional_trainable freeze_extra_modules",
        "method.modules_to_save",
        None,
        "",
    ),
    (
        "prompt_tuning_init",
        "method.init",
        None,
        "TEXT is text, SAMPLE_VOCAB is vocabulary, RANDOM is random",
    ),
    ("prompt_tuning_init_text prompt_init_text", "method.init_text", None, ""),
    ("pre_seq_len prompt_length prefix_length prompt_len n_prompt_tokens", "method.num_virtual_tokens", None, ""),
    ("encoder_hidden_size prefix_hidden_size", "method.encoder_dim method.projection_dim", None, ""),
    ("encoder_num_layers", "method.encoder_layers", None, ""),
    ("encoder_reparameterization_type", "method.encoder", None, "LSTM is lstm, MLP is mlp"),
    ("prefix_projection", "method.projection", None, ""),
    ("bottleneck_size adapter_size", "method.bottleneck_dim", None, ""),
    ("non_linearity", "method.activation", None, ""),
)

OTHER_NAMES: dict[str, OtherName] = {
    **{
        name: OtherName(tuple(settings.split()), value, note)
        for names, settings, value, note in _SAME_PURPOSE
        for name in names.split()
    },
    **{name: OtherName((), None, reason) for names, reason in NOT_NEEDED for name in names.split()},
}
"""Settings of peftly by the names of settings in other tools."""


def other_name(key: Any) -> OtherName | None:
    """Return the entry for a key of a configuration, `-` being as good as `_`; None: no known tool has this setting."""
    return OTHER_NAMES.get(str(key).strip().lower().replace("-", "_"))
