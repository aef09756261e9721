"""Tables of diffusion keys that are not simply used: other spellings, keys without an effect here, and refused ones."""

ALIASES = {
    "model_name": "pretrained_model_name_or_path",
    "checkpointing_steps": "checkpoint_step_interval",
    "validation_steps": "validation_step_interval",
    "optimizer_beta1": "adam_beta1",
    "optimizer_beta2": "adam_beta2",
    "flux_schedule_shift": "flow_schedule_shift",
    "flux_schedule_auto_shift": "flow_schedule_auto_shift",
    "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
    "flow_use_beta_schedule_alpha": "flow_beta_schedule_alpha",
    "flow_use_beta_schedule_beta": "flow_beta_schedule_beta",
    "max_training_steps": "max_train_steps",
    "validation_prompt_library": "user_prompt_library",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLACES = _words(
    """
    output_dir logging_dir cache_dir cache_dir_vae cache_dir_text data_backend_config configs_dir
    override_dataset_config merge_environment_config report_to tracker_project_name tracker_run_name
    tracker_image_layout webhook_config hub_token     lora_format_version accelerate_config accelerate_extra_args
    main_process_ip main_process_port machine_rank same_network local_rank i_know_what_i_am_doing
    delete_invalid_checkpoints checkpointing_use_tempdir eval_dataset_pooling
    """
)
"""Where things lie and who is told: the control plane decides. Damaged checkpoints are passed over, never deleted."""

_SPEED = _words(
    """
    attention_mechanism sageattention_usage enable_xformers_memory_efficient_attention fuse_qkv_projections
    allow_tf32 unet_attention_slice torch_num_threads
    max_workers aws_max_pool_connections write_batch_size read_batch_size image_processing_batch_size
    text_embed_batch_size text_encoder_batch_size text_encoder_limit train_text_encoder_batch_size
    metadata_update_interval aspect_bucket_worker_count aspect_bucket_disable_rebuild enable_multiprocessing
    compress_disk_cache vae_cache_ondemand vae_cache_disable text_cache_ondemand text_cache_disable
    text_embed_full_cache vae_cache_scan_behaviour vae_enable_slicing vae_enable_patch_conv
    vae_enable_temporal_roll keep_vae_loaded fully_unload_text_encoder delete_model_after_load
    offload_during_startup offload_during_save offload_param_path quantize_via dynamo_fullgraph
    dynamo_dynamic ema_device ema_foreach_disable ema_cpu_only fuse_optimizer set_grads_to_none gradient_precision
    accelerator_cache_clear_interval optimizer_release_gradients optimizer_offload_gradients
    optimizer_cpu_offload_method skip_file_discovery preserve_data_backend_cache print_filenames
    print_sampler_statistics debug_aspect_buckets debug_dataset_loader find_unused_parameters
    validation_torch_compile validation_torch_compile_mode validation_multigpu validation_preview
    validation_preview_steps validation_disable_unconditional delete_unwanted_images delete_problematic_images
    delete_nsfw_images seed_for_each_device
    """
)
"""How fast and in how much memory. Caches are keyed by content here; files of a dataset are never deleted."""

_MEANT_FOR_VIDEO = _words(
    """
    framerate validation_num_video_frames audio_channels audio_duration_interval audio_flow_schedule_shift
    audio_max_duration_seconds audio_min_duration_seconds audio_truncation_mode
    """
)

_WITHOUT_THEIR_SWITCH = _words(
    """
    lycoris_config init_lokr_norm text_encoder_lr save_text_encoder freeze_encoder_before freeze_encoder_after
    freeze_encoder_strategy controlnet_custom_config controlnet_model_name_or_path
    conditioning_multidataset_sampling checkpoints_rolling_total_limit disk_low_script lr_scale_sqrt
    soft_min_snr_sigma_data snr_weight huber_scale num_machines_rank flux_guidance_min flux_guidance_max
    refiner_training_strength refiner_training_invert_schedule group_offload_type group_offload_blocks_per_group
    group_offload_use_stream group_offload_to_disk_path musubi_block_swap_device validation_external_background
    assistant_lora_inference_strength assistant_lora_strength singlora_ramp_up_steps
    gradient_checkpointing_offload_prefetch input_perturbation_steps prodigy_steps
    gradient_checkpointing_offload_pin_memory_max_buckets nsfw_check_backend_types nsfw_check_min_votes
    nsfw_check_models nsfw_check_sample_types fsdp_auto_wrap_policy fsdp_cpu_offload fsdp_reshard_after_forward
    fsdp_state_dict_type fsdp_transformer_layer_cls_to_wrap fsdp_version validation_adapter_config
    validation_adapter_mode validation_adapter_name validation_adapter_strength validation_lycoris_strength
    distillation_config sdnq_weights_dtype diff2flow_loss mixflow_gamma twinflow_target_step_count crepa_lambda
    crepa_block_index crepa_encoder urepa_lambda validation_guidance_skip_layers_start
    validation_guidance_skip_layers_stop validation_guidance_skip_scale validation_stitch_input_location
    """
)
"""Settings of something whose switch is refused below: with the switch off they have no effect anywhere."""

IGNORED = _PLACES | _SPEED | _MEANT_FOR_VIDEO | _WITHOUT_THEIR_SWITCH
"""Known keys that are accepted, change nothing in the trained model, and are listed to the user as such."""

_OFF: tuple[object, ...] = (None, False, 0, "", "none", "no")
_ONE: tuple[object, ...] = (None, 1, 0)

_SCRIPTS = "Scripts from a submitted config are never run; remove the key."
_OFFLOADING = "It saves memory that base_model_precision or gradient_checkpointing can save here; switch it off."
_ONE_DEVICE = "A job runs on one device; raise gradient_accumulation_steps for a larger batch."
_METHOD = "This build trains with the plain objective; switch it off."
_IN_THE_DATALOADER = "Set it in the entry of the dataloader."

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    # What is trained
    "lora_type": (("standard", None), "Use lora_type standard; use_dora decomposes weights too."),
    "peft_lora_mode": (("standard", None), "Use standard."),
    "init_lora_step": (_OFF, "Steps are counted from the start of this job; remove the key."),
    "init_lora_ema": (_OFF, "Give the averaged adapter as init_lora."),
    "slider_lora_target": (_OFF, "Name the layers in peft_lora_target_modules."),
    "layer_freeze_strategy": (_OFF, "Name the layers that learn in peft_lora_target_modules."),
    "assistant_lora_path": (_OFF, "Give a base model that the adapter is merged into."),
    "disable_assistant_lora": ((None, True, False), "Remove it."),
    "controlnet": (_OFF, "Leave controlnet off: this build trains from pictures and captions alone."),
    "control": (_OFF, "Leave control off: this build trains from pictures and captions alone."),
    "train_text_encoder": (_OFF, "Train the denoiser only."),
    "trust_remote_code": (_OFF, "Remote code is never run on a training machine."),
    "base_model_default_dtype": (("bf16", None), "Use mixed_precision."),
    "quantization_config": (_OFF, "Use base_model_precision int8-torchao, fp8wo-torchao or nf4-bnb."),
    "quantize_activations": (_OFF, "Weights alone are quantised; switch it off."),
    **{
        f"text_encoder_{number}_precision": (("no_change", *_OFF), "Text encoders leave memory before training starts.")
        for number in range(1, 5)
    },
    "vae_dtype": (("default", "fp32", "no", None), "The VAE works in fp32 always; remove the key."),
    "pretrained_transformer_subfolder": (("transformer", None), "Give a folder that holds transformer."),
    "pretrained_unet_subfolder": (("unet", None), "Give a folder that holds unet."),
    "pretrained_gemma_model_name_or_path": (_OFF, "Give one base model that holds its text encoder."),
    "pretrained_grounding_model_name_or_path": (_OFF, "This build has no grounding."),
    "pretrained_evaluation_model_name_or_path": (_OFF, "Add a dataset of dataset_type eval: its loss is measured."),
    "qwen_text_encoder_model_name_or_path": (_OFF, "Give one base model that holds its text encoder."),
    "t5_padding": (("unmodified", None), "Use unmodified."),
    # The objective
    "use_soft_min_snr": (_OFF, "Use snr_gamma."),
    "flow_cubic_schedule_weights": (_OFF, "Use flow_use_beta_schedule or flow_custom_timesteps."),
    "flow_timesteps_mode": (("fixed-list", None), "Use fixed-list."),
    "flux_fast_schedule": (_OFF, "Use flow_custom_timesteps."),
    "flux_guidance_mode": (("constant", None), "Use flux_guidance_mode constant with flux_guidance_value."),
    "flux_attention_masked_training": (_OFF, "Leave it off: captions attend to their padding as in the base."),
    "training_scheduler_timestep_spacing": (("trailing", None), "Every step of the schedule is drawn; use trailing."),
    "masked_loss_probability": (_OFF, "Masks need conditioning data, which this build does not take."),
    "refiner_training": (_OFF, "Use timestep_bias_strategy range with begin and end."),
    "data_aesthetic_score": ((7.0, None), "Remove it: no family of this build reads an aesthetic score."),
    **dict.fromkeys(
        (
            "crepa_enabled", "urepa_enabled", "irepa_enabled", "layersync_enabled", "nextlat_enabled", "xm_enabled",
            "twinflow_enabled", "mixflow_enabled", "diff2flow_enabled", "internal_guidance_enabled",
            "scheduled_sampling_max_step_offset", "distillation_method", "tread_config", "sla_config",
            "diffusion_blocks_config", "delete_text_encoder",
        ),
        (_OFF, _METHOD),
    ),
    # The optimizer
    "lr_scale": (_OFF, "Set learning_rate itself."),
    "ema_update_after_step": (_OFF, "Use ema_warmup_steps."),
    # Machine and memory
    "gradient_checkpointing_backend": (("torch", None), "Use torch."),
    "gradient_checkpointing_segment_stride": (_OFF, "Use gradient_checkpointing_interval."),
    "gradient_checkpointing_offload_attention": (_OFF, _OFFLOADING),
    **dict.fromkeys(
        ("enable_group_offload", "group_offload_text_encoder", "group_offload_vae", "musubi_blocks_to_swap", "ramtorch",
         "ramtorch_text_encoder", "ramtorch_vae", "ramtorch_controlnet"),
        (_OFF, _OFFLOADING),
    ),
    **dict.fromkeys(("fsdp_enable", "deepspeed_config"), (_OFF, _ONE_DEVICE)),
    **dict.fromkeys(("num_processes", "num_machines", "context_parallel_size"), (_ONE, _ONE_DEVICE)),
    # Checkpoints, samples and scripts
    "checkpointing_rolling_steps": (_OFF, "Use checkpoint_step_interval with checkpoints_total_limit."),
    "disk_low_action": (("stop", None), "Use stop: a stopped job goes on from its last checkpoint."),
    "post_upload_script": (_OFF, _SCRIPTS),
    "post_checkpoint_script": (_OFF, _SCRIPTS),
    "validation_external_script": (_OFF, _SCRIPTS),
    "custom_tracker": (_OFF, _SCRIPTS),
    "validation_method": (("simpletuner-local", None), "Samples are drawn by the trainer; remove the key."),
    "validation_guidance_rescale": (_OFF, "Use validation_guidance alone."),
    "validation_guidance_real": (_ONE, "Use validation_guidance."),
    "validation_guidance_skip_layers": (_OFF, "Use validation_guidance alone."),
    "validation_internal_guidance_scale": (_OFF, "Use validation_guidance alone."),
    "validation_noise_scheduler": (_OFF, "Samples are drawn with the base's own scheduler."),
    "inference_scheduler_timestep_spacing": (("trailing", None), "Samples are drawn with the base's own scheduler."),
    "validation_seed_source": (("cpu", None), "Use cpu: the same seed then gives the same noise everywhere."),
    "validation_randomize": (_OFF, "Give validation_seed, so that samples can be compared."),
    "validation_using_datasets": (_OFF, "Add a dataset of dataset_type eval: its loss is measured."),
    "validation_input": (_OFF, "Samples are drawn from prompts alone."),
    "validation_adapter_path": (_OFF, "Samples are drawn with the adapter that is being trained."),
    "validation_image_format": (("png", None), "Samples are PNG files."),
    "validation_image_quality": ((100, None), "Samples are PNG files."),
    "evaluation_type": (_OFF, "Add a dataset of dataset_type eval: its loss is measured."),
    "user_prompt_library_path": (_OFF, "Give the prompts themselves as user_prompt_library, an object {id: prompt}."),
    "enable_nsfw_check": (_OFF, "Sort the pictures before uploading them."),
    "enable_watermark": (_OFF, "Samples carry no watermark; switch it off."),
    "ignore_missing_files": (_OFF, "Upload the dataset again."),
    # The dataset
    **dict.fromkeys(("crop", "crop_style", "crop_aspect"), ((None,), _IN_THE_DATALOADER)),
    "instance_data_dir": ((None,), _IN_THE_DATALOADER),
    **dict.fromkeys(("parquet_caption_column", "parquet_filename_column"), ((None,), "Use parquet in the entry.")),
    **dict.fromkeys(("validate_after_epoch", "validate_after_step"), (_OFF, "Use validation_on_startup.")),
}  # fmt: skip
"""Known keys that would change the result: refused by name unless switched off (the listed values)."""

OTHER_FAMILIES = frozenset(
    """
    sd2x kolors hidream omnigen ltxvideo ltxvideo2 wan wan_s2v cosmos2image cosmos3 kontext deepfloyd stable_cascade
    hunyuanvideo longcat longcat_image longcat_video kandinsky5 kandinsky5_image kandinsky5_video sanavideo ace_step
    heartmula krea2 ernie ideogram anima z_image_omni
    """.split()  # noqa: SIM905 -- a word list reads better
)
"""Families that exist and that this build does not train."""
