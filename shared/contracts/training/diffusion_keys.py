"""Tables of diffusion keys that are not simply used: other spellings, keys without an effect here, and refused ones."""

ALIASES = {
    "checkpointing_steps": "checkpoint_step_interval",
    "validation_steps": "validation_step_interval",
    "optimizer_beta1": "adam_beta1",
    "optimizer_beta2": "adam_beta2",
    "flux_schedule_shift": "flow_schedule_shift",
    "flux_schedule_auto_shift": "flow_schedule_auto_shift",
    "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
    "max_training_steps": "max_train_steps",
}

IGNORED = frozenset(
    """
    output_dir logging_dir cache_dir cache_dir_vae cache_dir_text data_backend_config seed_for_each_device report_to
    tracker_project_name tracker_run_name
    webhook_config attention_mechanism fuse_qkv_projections dataloader_prefetch dataloader_prefetch_qlen
    disk_low_threshold disk_low_action compress_disk_cache vae_dtype vae_enable_tiling vae_enable_slicing
    vae_cache_ondemand text_cache_ondemand vae_cache_scan_behaviour offload_during_startup
    enable_xformers_memory_efficient_attention allow_tf32 disable_tf32 gradient_precision quantize_via dynamo_mode
    ema_device ema_foreach_disable ema_cpu_only delete_invalid_checkpoints validation_negative_prompt
    validation_torch_compile validation_torch_compile_mode validation_guidance_rescale validation_method
    evaluation_type num_eval_images eval_dataset_id eval_steps_interval write_batch_size read_batch_size
    image_processing_batch_size aws_max_pool_connections torch_num_threads max_workers delete_unwanted_images
    delete_problematic_images skip_file_discovery preserve_data_backend_cache allow_dataset_oversubscription
    model_flavour train_text_encoder_batch_size text_embed_batch_size print_filenames print_sampler_statistics
    metadata_update_interval minimum_image_size override_dataset_config user_prompt_library_path hub_token
    set_grads_to_none data_backend_sampling lora_format_version huber_c huber_schedule
    noise_offset noise_offset_probability flux_fast_schedule ema_update_after_step text_encoder_lr crop crop_style
    crop_aspect caption_strategy instance_prompt instance_data_dir gradient_checkpointing_backend validation_size
    i_know_what_i_am_doing accelerator_cache_clear_interval strict_epoch_limit lora_init_step init_lora_step
    optimizer_release_gradients flow_use_beta_schedule_alpha flow_use_beta_schedule_beta lycoris_config
    input_perturbation_steps timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion
    flow_timesteps_mode checkpointing_rolling_steps checkpoints_rolling_total_limit
    """.split()  # noqa: SIM905 -- a word list reads better
)
"""Known keys about places, tracking, caching and speed that belong to the platform or have no effect on FLUX LoRA."""

_OFF: tuple[object, ...] = (None, False, 0, "", "none", "no")

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "lora_type": (("standard", None), "Use lora_type standard; LyCORIS is not built yet."),
    "use_dora": (_OFF, "Leave use_dora off."),
    "init_lora": (_OFF, "Start from the base model; starting from an adapter is not built yet."),
    "controlnet": (_OFF, "Leave controlnet off."),
    "control": (_OFF, "Leave control off."),
    "train_text_encoder": (_OFF, "Train the transformer only."),
    "trust_remote_code": (_OFF, "Remote code is never run on a training machine."),
    "post_upload_script": (_OFF, "Scripts from a submitted config are never run."),
    "post_checkpoint_script": (_OFF, "Scripts from a submitted config are never run."),
    "base_model_precision": (
        ("no_change", *_OFF),
        "Use base_model_precision no_change; quantised bases are not built yet.",
    ),
    "text_encoder_1_precision": (("no_change", *_OFF), "Use no_change."),
    "text_encoder_2_precision": (("no_change", *_OFF), "Use no_change."),
    "quantization_config": (_OFF, "Quantised bases are not built yet."),
    "prediction_type": (("flow_matching", *_OFF), "FLUX is trained with flow matching; remove the key."),
    "loss_type": (("l2", None), "Use loss_type l2."),
    "snr_gamma": (_OFF, "Min-SNR weighting has no meaning for flow matching; remove the key."),
    "offset_noise": (_OFF, "Leave offset_noise off."),
    "input_perturbation": (_OFF, "Leave input_perturbation at 0."),
    "rescale_betas_zero_snr": (_OFF, "It has no meaning for flow matching; remove the key."),
    "flow_use_beta_schedule": (_OFF, "Use the default draw or flow_use_uniform_schedule."),
    "flow_custom_timesteps": (_OFF, "Use the default draw or flow_use_uniform_schedule."),
    "timestep_bias_strategy": (_OFF, "Leave timestep_bias_strategy at none."),
    "flux_guidance_mode": (("constant", None), "Use flux_guidance_mode constant with flux_guidance_value."),
    "flux_attention_masked_training": (_OFF, "Masked attention is not built yet; leave it off."),
    "optimizer_config": (_OFF, "Set adam_beta1, adam_beta2, adam_weight_decay and adam_epsilon instead."),
    "gradient_checkpointing_interval": (_OFF, "Use gradient_checkpointing alone."),
    "dynamo_backend": (_OFF, "Leave dynamo_backend at no."),
    "dynamo_use_regional_compilation": (_OFF, "Leave it off."),
    "enable_group_offload": (_OFF, "Offloading is not built yet; leave it off."),
    "musubi_blocks_to_swap": (_OFF, "Offloading is not built yet; leave it at 0."),
    "vae_cache_disable": (_OFF, "Latents are always cached."),
    "text_cache_disable": (_OFF, "Text embeddings are always cached."),
    "checkpoint_epoch_interval": (_OFF, "Use checkpointing_steps."),
    "validation_epoch_interval": (_OFF, "Use validation_steps."),
    "pretrained_transformer_model_name_or_path": (_OFF, "Give one complete base model."),
    "pretrained_unet_model_name_or_path": (_OFF, "Give one complete base model."),
    "pretrained_vae_model_name_or_path": (_OFF, "Give one complete base model."),
    "pretrained_t5_model_name_or_path": (_OFF, "Give one complete base model."),
}
"""Known keys that would change the result: refused by name unless switched off (the listed values)."""

OTHER_FAMILIES = frozenset(
    """
    sd1x sd2x sdxl sd3 flux2 pixart_sigma auraflow chroma lumina2 sana z_image qwen_image kolors hidream omnigen
    ltxvideo wan cosmos2image kontext deepfloyd stable_cascade hunyuanvideo longcat kandinsky5
    """.split()  # noqa: SIM905 -- a word list reads better
)
OTHER_OPTIMIZERS = frozenset(
    """
    ao-adamw8bit ao-adamw4bit ao-adamfp8 adamw_schedulefree bnb-adamw8bit bnb-adamw bnb-lion8bit bnb-ademamix
    optimi-adamw optimi-lion optimi-stableadamw optimi-adan optimi-ranger soap prodigy adafactor muon came
    dadaptation stableadamw
    """.split()  # noqa: SIM905 -- a word list reads better
)
