"""Names of settings in other tools, and the settings of peftly with the same purpose.

The tools are transformers (`TrainingArguments`), TRL, PEFT, bitsandbytes, axolotl, LLaMA-Factory, ms-swift, Unsloth,
Lightning and AdapterHub. Nothing here is an alias: a setting has one name, and an error names it.
"""

from typing import Any, NamedTuple

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
    ("patience early_stopping early_stopping_rounds", "train.early_stopping_patience", None, "a number of evaluations"),
    ("early_stopping_delta min_delta early_stopping_min_delta", "train.early_stopping_threshold", None, ""),
    ("activation_checkpointing use_gradient_checkpointing", "train.gradient_checkpointing", None, ""),
    (
        "sample_packing neat_packing eval_packing eval_sample_packing padding_free",
        "train.packing",
        None,
        "on by default",
    ),
    ("deepspeed fsdp_config", "train.fsdp", None, "true shards the base over the processes of torchrun"),
    ("loggers log_with tracker trackers", "train.report_to", None, "a name or a list of names"),
    (
        "use_wandb wandb wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model",
        "train.report_to",
        None,
        "wandb; WANDB_MODE=online in the environment sends the run, and WANDB_PROJECT names the project",
    ),
    (
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name",
        "train.report_to",
        None,
        "mlflow; MLFLOW_TRACKING_URI names a server",
    ),
    ("use_swanlab swanlab_project swanlab_mode", "train.report_to", None, "swanlab; SWANLAB_MODE=online sends it"),
    ("trackio_space_id", "train.report_to", None, "trackio; TRACKIO_SPACE_ID names a Space"),
    ("bf16 bfloat16 pure_bf16", "dtype", "bfloat16", ""),
    ("fp16 half pure_fp16 float16", "dtype", "float16", ""),
    ("torch_dtype precision mixed_precision model_dtype", "dtype", None, "auto, float32, bfloat16 or float16"),
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
    ("quantization_config bnb_config", "quantization", None, "nf4, fp4 or int8, or a mapping with kind"),
    ("bnb_4bit_quant_type quant_type", "quantization.kind", None, "nf4 or fp4"),
    ("bnb_4bit_use_double_quant double_quantization double_quant", "quantization.double", None, "true by default"),
    ("bnb_4bit_compute_dtype", "quantization.compute_dtype", None, ""),
    (
        "max_seq_length max_seq_len sequence_len seq_length seq_len cutoff_len model_max_length context_length "
        "max_source_length max_prompt_length max_len block_size",
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
        "the prompt with its fields; a conversation takes the base's chat template, or data.chat_template",
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
    ("use_rslora lora_use_rslora", "method.rslora", None, ""),
    ("use_dora peft_use_dora lora_use_dora", "method", "dora", "in Python peftly.DoRA"),
    ("init_lora_weights lora_init peft_init_lora_weights", "method.init", None, ""),
    ("pissa_init", "method.init", "pissa", ""),
    ("loftq_config", "method.init", "qera", "on a quantised base"),
    ("freeze_trainable_layers unfrozen_parameters freeze_trainable_modules", "method", "selective", ""),
    ("loraplus_lr_ratio loraplus_ratio lorap_lr_ratio", "method.lora_plus_ratio", None, ""),
    ("additional_target lora_modules_to_save additional_trainable", "method.modules_to_save", None, ""),
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

_NOT_NEEDED = (
    (
        "logging_steps logging_strategy logging_first_step logging_dir log_level log_steps log_interval plot_loss "
        "include_num_input_tokens_seen disable_tqdm",
        "metrics.jsonl in the run folder has every step and every evaluation",
    ),
    ("run_name project", "a run has the name of its folder, and the project of a tracker is peftly"),
    (
        "load_best_model_at_end",
        "the weights of the best evaluation are always the result; train.metric_for_best_model says which is the best",
    ),
    ("greater_is_better", "it follows from train.metric_for_best_model"),
    ("do_train do_eval do_predict stage", "peftly train trains, and evaluates where there are other rows"),
    ("overwrite_output_dir", "type --overwrite behind peftly train"),
    ("resume_from_checkpoint auto_resume_from_checkpoints", "type peftly train --resume and the run folder"),
    (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo",
        "type peftly push, the run folder and --to user/name after the training",
    ),
    (
        "train_on_inputs completion_only_loss assistant_only_loss train_on_prompt train_on_responses_only mask_history "
        "response_template only_train_on_completions roles_to_train train_on_eos",
        "the loss is that of completions and assistant turns only",
    ),
    (
        "group_by_length length_column_name pad_to_sequence_len padding pad_to_multiple_of train_sampling_strategy",
        "packed batches have no padding, and padded ones have examples of similar length",
    ),
    (
        "remove_unused_columns label_names dataset_num_proc preprocessing_num_workers overwrite_cache tokenized_path "
        "dataset_prepared_path dataset_kwargs dataset_processes cache_dir streaming dataset_streaming buffer_size",
        "only the fields of the template and the target are read, on all cores",
    ),
    (
        "dataloader_num_workers dataloader_pin_memory dataloader_drop_last dataloader_prefetch_factor "
        "dataloader_persistent_workers",
        "the examples are token ids in memory, or in a temporary file",
    ),
    ("auto_find_batch_size", "the number of tokens at once is measured; train.micro_batch_tokens sets it"),
    (
        "ddp_find_unused_parameters ddp_timeout ddp_backend ddp_bucket_cap_mb local_rank num_processes num_gpus "
        "devices accelerator strategy average_tokens_across_devices",
        "start the processes with torchrun, as docs/processes.md says",
    ),
    (
        "flash_attention flash_attn attn_implementation sdp_attention xformers_attention use_flash_attention "
        "use_flash_attention_2 s2_attention shift_attn use_liger_kernel use_unsloth enable_liger_kernel torch_compile "
        "torch_compile_backend torch_compile_mode unsloth use_reentrant tf32 packing_strategy activation_offloading",
        "peftly chooses its own attention and kernels",
    ),
    (
        "runtime_config gradient_checkpointing_kwargs use_cache bf16_full_eval fp16_full_eval eval_accumulation_steps",
        "peftly sets it",
    ),
    (
        "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_type model_type use_fast_tokenizer revision "
        "model_revision trust_remote_code auto_mapping",
        "the tokenizer and the class of the model are those of the base, and code from the Hub is not run",
    ),
    (
        "token_dim num_attention_heads num_layers num_transformer_submodules inference_mode fan_in_fan_out "
        "lora_fan_in_fan_out peft_version megatron_config megatron_core",
        "it is read from the base",
    ),
    ("adam_beta1 adam_beta2 adam_epsilon optim_args betas eps", "the optimizers have the defaults of torch"),
    (
        "eval_table_size eval_max_new_tokens loss_watchdog_threshold rope_scaling mix_strategy loss_type use_galore "
        "label_smoothing_factor label_smoothing neftune_noise_alpha noisy_embedding_alpha exclude_modules "
        "layers_to_transform layers_pattern layer_replication use_qalora qalora_group_size lr_scheduler_kwargs "
        "llm_int8_threshold bnb_4bit_quant_storage target_parameters alora_invocation_tokens lora_bias eva_config "
        "corda_config lora_ga_config velora_config monteclora_config kasa_config arrow_config use_bdlora "
        "ensure_weight_tying",
        "peftly has no such setting",
    ),
    (
        "max_samples max_train_samples max_eval_samples max_steps_per_epoch",
        "the rows of the files are used; name a smaller file, or set train.max_steps",
    ),
    (
        "lora_model_dir adapter_name_or_path checkpoint_dir adapter_path",
        "a training starts from a new adapter; peftly train --resume continues an unfinished run",
    ),
    ("use_peft strict plugins stage_type", "every method but full trains an adapter"),
    ("save_safetensors save_only_model save_on_each_node", "adapters are small safetensors files"),
    ("full_determinism", "the same seed gives the same bytes"),
    ("special_tokens add_special_tokens resize_vocab trainable_token_indices", "the vocabulary of the base stays"),
)

OTHER_NAMES: dict[str, OtherName] = {
    **{
        name: OtherName(tuple(settings.split()), value, note)
        for names, settings, value, note in _SAME_PURPOSE
        for name in names.split()
    },
    **{name: OtherName((), None, reason) for names, reason in _NOT_NEEDED for name in names.split()},
}
"""Settings of peftly by the names of settings in other tools."""


def other_name(key: Any) -> OtherName | None:
    """Return the entry for a key of a configuration, `-` being as good as `_`; None: no known tool has this setting."""
    return OTHER_NAMES.get(str(key).strip().lower().replace("-", "_"))
