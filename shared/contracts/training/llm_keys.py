"""The keys of a language model's training: every spelling that is known, section by section, and what each means here.

People come with configs of several programs; each of their names stands for one field of `LlmSpec` or one switch of
`LlmSwitches`, is ignored because it belongs to the platform, or is refused because it would change the result.
"""

SPELLINGS: dict[str, tuple[str, ...]] = {
    "pretrained_model_name_or_path": (
        "model", "model_name", "model_id", "model_name_or_path", "base_model", "name_or_path",
    ),
    "revision": ("model_revision",),
    "chat_template": ("template",),
    "attn_implementation": ("attention_implementation",),
    "method": ("training_method", "training_type", "stage", "trainer"),
    "num_train_epochs": ("num_epochs", "epochs"),
    "max_train_steps": ("max_steps", "num_steps", "max_training_steps", "total_steps"),
    "train_batch_size": ("batch_size", "per_device_train_batch_size", "micro_batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation", "grad_accumulation_steps", "accumulation_steps"),
    "gradient_checkpointing": ("use_gradient_checkpointing",),
    "learning_rate": ("lr",),
    "lr_scheduler": ("lr_scheduler_type", "scheduler", "scheduler_type"),
    "lr_warmup_steps": ("warmup_steps", "num_warmup_steps"),
    "warmup_ratio": ("lr_warmup_ratio",),
    "optimizer": ("optim",),
    "adam_weight_decay": ("weight_decay",),
    "adam_beta1": ("optimizer_beta1",),
    "adam_beta2": ("optimizer_beta2",),
    "max_grad_norm": ("gradient_clipping", "grad_clip", "max_gradient_norm"),
    "lora_rank": ("lora_r",),
    "peft_lora_target_modules": ("lora_target_modules", "target_modules", "lora_target"),
    "lora_init_type": ("init_lora_weights",),
    "max_length": ("max_seq_length", "max_seq_len", "max_sequence_length", "sequence_length", "sequence_len",
                   "cutoff_len", "context_length", "block_size"),
    "packing": ("pack_sequences", "sample_packing"),
    "completion_only_loss": ("assistant_only_loss", "completion_only", "train_on_completions_only"),
    "eval_split": ("validation_split", "eval_size", "val_size", "test_size", "val_set_size", "eval_ratio"),
    "validation_step_interval": ("eval_steps", "validation_steps", "eval_step_interval"),
    "eval_strategy": ("evaluation_strategy",),
    "checkpoint_step_interval": ("save_steps", "checkpointing_steps", "checkpoint_steps"),
    "checkpoints_total_limit": ("save_total_limit",),
    "webhook_reporting_interval": ("logging_steps", "log_steps"),
    "beta": ("dpo_beta", "pref_beta"),
    "label_smoothing": ("dpo_label_smoothing",),
    "loss_type": ("dpo_loss_type", "pref_loss"),
    "merge_and_save": ("merge_lora", "merge_adapter", "merge_weights", "save_merged", "save_merged_model"),
    "mixed_precision": ("precision", "torch_dtype", "dtype"),
    "full_finetuning": ("full_finetune", "full_fine_tuning"),
    "load_in_4bit": ("use_4bit", "use_qlora", "qlora"),
    "load_in_8bit": ("use_8bit",),
    "quantization_type": ("bnb_4bit_quant_type",),
    "double_quantization": ("bnb_4bit_use_double_quant", "use_nested_quant", "double_quant", "use_double_quant"),
    "seed": ("random_seed", "random_state"),
}  # fmt: skip
"""Field -> its other names, at the top level and in `training`."""

ALIASES = {spelling: name for name, spellings in SPELLINGS.items() for spelling in spellings}

SECTIONS: dict[str, dict[str, str]] = {
    "model": {"name": "pretrained_model_name_or_path", "id": "pretrained_model_name_or_path",
              "path": "pretrained_model_name_or_path", "max_length": "max_length"},
    "training": {"type": "method"},
    "lora": {"enabled": "use_lora", "r": "lora_rank", "rank": "lora_rank", "alpha": "lora_alpha",
             "dropout": "lora_dropout", "bias": "lora_bias", "task_type": "task_type"},
    "dpo": {},
    "quantization": {"enabled": "quantized", "bits": "quantization_bits", "type": "quantization_type",
                     "quant_type": "quantization_type", "mode": "quantization"},
    "evaluation": {"enabled": "eval_enabled", "split": "eval_split", "steps": "validation_step_interval",
                   "strategy": "eval_strategy"},
    "predictions": {
        "enabled": "predictions_enabled", "sample_count": "prediction_count", "num_samples": "prediction_count",
        "count": "prediction_count", "samples": "prediction_count", "sample_frequency": "prediction_frequency",
        "frequency": "prediction_frequency", "sample_steps": "prediction_steps", "steps": "prediction_steps",
        "step_interval": "prediction_steps", "step_frequency": "prediction_steps",
        "sample_interval": "prediction_steps", "frequency_steps": "prediction_steps",
        "every_n_steps": "prediction_steps", "max_new_tokens": "prediction_max_length",
        "max_tokens": "prediction_max_length", "max_length": "prediction_max_length",
    },
}  # fmt: skip
"""Section of the config -> names that mean something of their own in it; all other known names may stand there too."""

SECTION_NAMES = {
    "peft": "lora", "lora_config": "lora", "quantisation": "quantization", "eval": "evaluation",
    "prediction": "predictions", "training_config": "training", "hyperparameters": "training",
}  # fmt: skip

DATASET_SECTIONS = frozenset({"dataset", "datasets", "data"})

IGNORED = frozenset(
    """
    output_dir logging_dir run_name report_to name description tags notes version project experiment_name
    tracker_project_name tracker_run_name overwrite_output_dir dataloader_num_workers num_workers group_by_length
    remove_unused_columns disable_tqdm do_train do_eval task_type metrics webhook_config data_backend_config
    per_device_eval_batch_size eval_batch_size padding_side pad_to_max_length use_fast_tokenizer tokenizer_name
    bnb_4bit_compute_dtype compute_dtype created_at updated_at id user_id job_type model_family tf32
    use_flash_attention load_best_model_at_end ddp_find_unused_parameters
    """.split()  # noqa: SIM905 -- a word list reads better
)
"""Known keys about places, tracking and speed that belong to the platform or change nothing here."""

_OFF: tuple[object, ...] = (None, False, 0, "", "none", "no")

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "trust_remote_code": (_OFF, "Remote code is never run on a training machine."),
    "lora_bias": (_OFF, "Leave lora_bias at none."),
    "loss_type": (("sigmoid", *_OFF), "Use loss_type sigmoid."),
    "neftune_noise_alpha": (_OFF, "Leave it off."),
    "temperature": (_OFF, "Predictions are greedy, so that they can be compared; remove it."),
    "top_p": (_OFF, "Predictions are greedy, so that they can be compared; remove it."),
    "do_sample": (_OFF, "Predictions are greedy, so that they can be compared; remove it."),
    "train_on_inputs": (_OFF, "Set completion_only_loss to false to learn from the prompt too."),
    "modules_to_save": ((*_OFF, "[]"), "Adapters on the linear layers, or model_type full."),
    "reward_model": (_OFF, "Only sft and dpo are trained here."),
    "ref_model": (_OFF, "The reference is the base model; remove it."),
    "deepspeed": (_OFF, "One machine trains with one process; remove it."),
    "base_model_precision": (("no_change", *_OFF), "Use quantization 4bit or 8bit."),
    "init_lora": (_OFF, "Start from the base model, or from a merged one."),
    "variant": (_OFF, "Name the model's main weights."),
    "gradient_checkpointing_interval": (_OFF, "Use gradient_checkpointing alone."),
    "strict_epoch_limit": (_OFF, "Set num_epochs and leave max_steps out."),
    "checkpoint_epoch_interval": (_OFF, "Use save_strategy epoch."),
    "validation_epoch_interval": (_OFF, "Use eval_strategy epoch."),
    "fsdp": (_OFF, "One machine trains with one process; remove it."),
}
"""Known keys that would change the result: refused by name unless switched off (the listed values)."""
