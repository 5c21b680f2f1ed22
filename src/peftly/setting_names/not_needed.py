"""Settings of other tools that peftly has no use for, with the reason; see `names`."""

__all__ = ["NOT_NEEDED"]

NOT_NEEDED = (
    (
        "logging_steps logging_strategy logging_first_step logging_dir log_level log_steps log_interval "
        "plot_loss include_num_input_tokens_seen disable_tqdm include_tokens_per_second "
        "include_effective_tokens_per_second log_on_each_node logging_nan_inf_filter log_level_replica "
        "print_param_status skip_memory_metrics profiler_steps",
        "metrics.jsonl in the run folder has every step and every evaluation",
    ),
    ("run_name project", "a run has the name of its folder, and the project of a tracker is peftly"),
    (
        "load_best_model_at_end",
        "the weights of the best evaluation are always the result; train.metric_for_best_model says which is the best",
    ),
    ("greater_is_better", "it follows from train.metric_for_best_model"),
    ("do_train do_eval do_predict", "peftly train trains, and evaluates where there are other rows"),
    ("overwrite_output_dir", "type --overwrite behind peftly train"),
    ("resume_from_checkpoint auto_resume_from_checkpoints", "type peftly train --resume and the run folder"),
    (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision "
        "push_to_hub_model_id push_to_hub_organization push_to_hub_token push_dataset_to_hub "
        "export_hub_model_id",
        "type peftly push, the run folder and --to user/name after the training",
    ),
    (
        "train_on_inputs completion_only_loss assistant_only_loss train_on_prompt train_on_responses_only mask_history "
        "response_template only_train_on_completions roles_to_train train_on_eos loss_scale "
        "ignore_pad_token_for_loss",
        "the loss is that of completions and assistant turns only",
    ),
    (
        "group_by_length length_column_name pad_to_sequence_len padding pad_to_multiple_of train_sampling_strategy "
        "sortish_sampler batch_flattening multipack_real_batches sample_packing_group_size sample_packing_bin_size "
        "pretraining_sample_concatenation pretrain_multipack_buffer_size pretrain_multipack_attn",
        "packed batches have no padding, and padded ones have examples of similar length",
    ),
    (
        "remove_unused_columns label_names dataset_num_proc preprocessing_num_workers overwrite_cache tokenized_path "
        "dataset_prepared_path dataset_kwargs dataset_processes cache_dir streaming dataset_streaming buffer_size "
        "preprocessing_batch_size skip_prepare_dataset dataset_keep_in_memory dataset_shard_num dataset_shard_idx "
        "load_from_cache_file custom_dataset_info custom_register_path",
        "only the fields of the template and the target are read, on all cores",
    ),
    (
        "dataloader_num_workers dataloader_pin_memory dataloader_drop_last dataloader_prefetch_factor "
        "dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order dispatch_batches "
        "split_batches lazy_tokenize",
        "the examples are token ids in memory, or in a temporary file",
    ),
    ("auto_find_batch_size", "the number of tokens at once is measured; train.micro_batch_tokens sets it"),
    (
        "ddp_find_unused_parameters ddp_timeout ddp_backend ddp_bucket_cap_mb local_rank num_processes num_gpus "
        "devices accelerator strategy average_tokens_across_devices accelerator_config parallelism_config "
        "ddp_broadcast_buffers ddp_static_graph ddp world_size use_ray ray_scope",
        "start the processes with torchrun, as docs/processes.md says",
    ),
    (
        "flash_attention flash_attn attn_implementation sdp_attention xformers_attention use_flash_attention "
        "use_flash_attention_2 s2_attention shift_attn use_liger_kernel use_unsloth enable_liger_kernel torch_compile "
        "torch_compile_backend torch_compile_mode unsloth use_reentrant tf32 packing_strategy activation_offloading "
        "liger_kernel_config flex_attention eager_attention flash_attn_cross_entropy flash_attn_rms_norm "
        "flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum unsloth_cross_entropy_loss unsloth_lora_mlp "
        "unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope lora_mlp_kernel lora_qkv_kernel lora_o_kernel "
        "attn_impl block_diag_attn torchdynamo jit_mode_eval use_ipex",
        "peftly chooses its own attention and kernels",
    ),
    (
        "runtime_config gradient_checkpointing_kwargs use_cache bf16_full_eval fp16_full_eval "
        "eval_accumulation_steps activation_checkpointing_kwargs torch_empty_cache_steps gc_steps debug "
        "low_cpu_mem_usage upcast_layernorm upcast_lmhead_output fp16_backend half_precision_backend "
        "fp16_opt_level lora_dtype peft_autocast_adapter_dtype qlora_sharded_model_loading lora_on_cpu "
        "llm_int8_skip_modules llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight fp8 mp_parameters "
        "tpu_num_cores tpu_metrics_debug past_index",
        "peftly sets it",
    ),
    (
        "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_type model_type use_fast_tokenizer revision "
        "model_revision trust_remote_code auto_mapping tokenizer_kwargs eos_token pad_token model_init_kwargs "
        "cls_model_config tokenizer_config tokenizer_use_fast tokenizer_legacy processor_type revision_of_model "
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model model_author",
        "the tokenizer and the class of the model are those of the base, and code from the Hub is not run",
    ),
    (
        "token_dim num_attention_heads num_layers num_transformer_submodules inference_mode fan_in_fan_out "
        "lora_fan_in_fan_out peft_version megatron_config megatron_core",
        "it is read from the base",
    ),
    ("adam_beta1 adam_beta2 adam_epsilon optim_args betas eps", "the optimizers have the defaults of torch"),
    (
        "eval_table_size eval_max_new_tokens loss_watchdog_threshold rope_scaling mix_strategy loss_type "
        "use_galore label_smoothing_factor label_smoothing neftune_noise_alpha noisy_embedding_alpha "
        "exclude_modules layers_to_transform layers_pattern layer_replication use_qalora qalora_group_size "
        "lr_scheduler_kwargs llm_int8_threshold bnb_4bit_quant_storage target_parameters "
        "alora_invocation_tokens lora_bias eva_config corda_config lora_ga_config velora_config "
        "monteclora_config kasa_config arrow_config use_bdlora ensure_weight_tying peft_layers_to_transform "
        "peft_layers_pattern peft_layer_replication peft_ensure_weight_tying lora_target_parameters "
        "loraplus_lr_embedding pissa_iter pissa_convert relora relora_steps relora_prune_ratio "
        "relora_cpu_offload router_aux_loss_coef moe_aux_loss_coef mixture_of_depths use_llama_pro "
        "train_from_scratch loss_watchdog_patience use_pose pose_split_on_token_ids pose_max_context_len "
        "pose_num_chunks interleave_probs sequence_parallel_degree heads_k_stride llama4_linearized_experts "
        "do_bench_eval bench_dataset bench_split freeze_parameters_ratio tool_format gptq agent_template "
        "enable_thinking use_comet comet_project_name comet_workspace",
        "peftly has no such setting",
    ),
    (
        "max_samples max_train_samples max_eval_samples max_steps_per_epoch",
        "the rows of the files are used; name a smaller file, or set train.max_steps",
    ),
    (
        "lora_model_dir adapter_name_or_path checkpoint_dir adapter_path adapter_folder create_new_adapter",
        "a training starts from a new adapter; peftly train --resume continues an unfinished run",
    ),
    (
        "use_peft strict plugins stage_type add_version create_checkpoint_symlink",
        "every method but full trains an adapter",
    ),
    ("save_safetensors save_only_model save_on_each_node", "adapters are small safetensors files"),
    ("full_determinism", "the same seed gives the same bytes"),
    (
        "special_tokens add_special_tokens resize_vocab trainable_token_indices peft_trainable_token_indices tokens "
        "new_special_tokens add_tokens added_tokens_overrides split_special_tokens fix_untrained_tokens "
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings",
        "the vocabulary of the base stays",
    ),
    (
        "stage rl trl vllm reward_model process_reward_model dpo_use_weighting dpo_use_logits_to_keep "
        "pref_beta pref_ftx pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
        "kto_desirable_weight kto_undesirable_weight simpo_gamma orpo_alpha rpo_alpha cpo_alpha rl_beta "
        "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters "
        "ref_model_quantization_bit reward_model_adapters reward_model_quantization_bit reward_model_type",
        "peftly trains on completions, labels and texts, and on no preferences or rewards (DPO, PPO, KTO)",
    ),
    (
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo "
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
        "apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block badam_switch_mode "
        "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_adam_mini use_muon lisa_n_layers "
        "torchdistx_path optim_target_modules",
        "the optimizers are those of train.optimizer",
    ),
    (
        "lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_groups embedding_lr "
        "embedding_lr_scale",
        "the schedules are those of train.lr_scheduler_type",
    ),
    (
        "media_dir image_max_pixels image_min_pixels image_resolution video_resolution video_max_pixels video_fps "
        "video_maxlen freeze_vision_tower freeze_multi_modal_projector freeze_language_model train_mm_proj_only "
        "freeze_llm freeze_vit freeze_aligner",
        "peftly trains on texts",
    ),
    (
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format merge_lora",
        "type peftly merge and the run folder after the training",
    ),
    (
        "generation_max_length generation_num_beams generation_config eval_num_beams do_sample temperature top_p top_k "
        "num_beams max_new_tokens repetition_penalty length_penalty skip_special_tokens infer_backend vllm_maxlen "
        "vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config",
        "it belongs to the use of the adapter; see peftly generate --help",
    ),
    (
        "disable_shuffling dataset_shuffle shuffle_dataset shuffle_merged_datasets curriculum_sampling "
        "sample_packing_sequentially",
        "the examples are shuffled in every epoch, by train.seed",
    ),
    (
        "eval_delay eval_on_start prediction_loss_only eval_do_concat_batches eval_use_gather_object "
        "batch_eval_metrics eval_on_each_dataset",
        "train.eval_steps says when all validation examples are evaluated",
    ),
    (
        "ignore_data_skip restore_callback_states_from_checkpoint enable_jit_checkpoint",
        "a resumed run continues as if it had not stopped",
    ),
    ("num_labels", "the labels are those of the rows"),
    ("min_sample_len dataset_exact_deduplication", "peftly inspect shows empty and repeated rows"),
    ("init_ia3_weights", "IA3 starts with the outputs of the base"),
    ("hf_hub_token hf_use_auth_token", "the environment variable HF_TOKEN is used"),
    ("ms_hub_token om_hub_token use_hf", "name a folder, or an id of the Hugging Face Hub"),
)
"""Names of settings, and the reason why they can be left out."""
