"""The `--key` training configuration: which keys exist, what they mean here, and one checker for both sides.

The gateway calls `check_config` at submit and the trainer calls it again at start, so a config that was accepted is
never refused on the paid machine. Every known key has exactly one rule: used, ignored (harmless here) or refused
(would change the result and is not built yet). Key names follow SimpleTuner's configuration files.
"""

import difflib
import json
import re
from typing import Any, Literal, cast

import msgspec

from shared.contracts.config_values import converted, shown

ProblemCode = Literal[
    "unknown_key", "unsupported", "wrong_type", "out_of_range", "missing", "conflict", "duplicate", "secret_in_config"
]
FluxTarget = Literal["all", "all+ffs", "all+ffs+embedder", "context", "context+ffs", "ai-toolkit", "tiny", "nano"]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a config is refused; `field` is the key as submitted."""

    field: str
    code: ProblemCode
    message: str
    advice: str


class ConfigRejected(Exception):  # noqa: N818 -- a refusal is an answer, not a fault
    """The config cannot be trained; carries every problem found, not only the first."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A checked training configuration. Field names are the keys without dashes; defaults are those of the keys."""

    model_family: Literal["flux"]
    model_type: Literal["lora"]
    pretrained_model_name_or_path: str = "black-forest-labs/FLUX.1-dev"
    revision: str | None = None
    variant: str | None = None
    seed: int = 42
    resolution: float = 1024
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    aspect_bucket_rounding: int = 2
    aspect_bucket_alignment: int = 64
    disable_bucket_pruning: bool = False
    tokenizer_max_length: int | None = None
    max_train_steps: int = 0
    num_train_epochs: int = 0
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.1
    lora_init_type: Literal["default", "gaussian"] = "default"
    flux_lora_target: FluxTarget = "all"
    peft_lora_target_modules: list[str] | None = None
    flux_guidance_value: float = 1.0
    learning_rate: float = 1e-4
    lr_scheduler: Scheduler = "constant_with_warmup"
    lr_warmup_steps: int = 0
    lr_num_cycles: float = 1
    lr_power: float = 0.8
    lr_end: float = 4e-7
    optimizer: Literal["adamw", "adamw_bf16"] = "adamw_bf16"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 2.0
    grad_clip_method: Literal["value", "norm"] = "value"
    flow_schedule_shift: float = 3.0
    flow_schedule_auto_shift: bool = False
    flow_sigmoid_scale: float = 1.0
    flow_use_uniform_schedule: bool = False
    caption_dropout_probability: float = 0.1
    use_ema: bool = False
    ema_decay: float = 0.995
    ema_update_interval: int = 1
    ema_validation: Literal["none", "ema_only", "comparison"] = "comparison"
    vae_batch_size: int = 4
    checkpoint_step_interval: int = 500
    checkpoints_total_limit: int = 5
    resume_from_checkpoint: str | None = "latest"
    validation_prompt: str | None = None
    user_prompt_library: dict[str, str] | None = None
    validation_step_interval: int = 100
    validation_on_startup: bool = False
    validation_disable: bool = False
    validation_resolution: str = "256"
    validation_guidance: float = 7.5
    validation_num_inference_steps: int = 30
    validation_seed: int | None = None
    num_validation_images: int = 1
    disable_benchmark: bool = False
    webhook_reporting_interval: int = 1
    modelspec_comment: str | None = None
    ignored_keys: list[str] = []
    """Keys that were given, are known, and change nothing here."""


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
    tracker_project_name tracker_run_name hub_model_id model_card_private model_card_note model_card_safe_for_work
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
    push_to_hub_background set_grads_to_none data_backend_sampling lora_format_version huber_c huber_schedule
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
    "lora_format": (("diffusers", None), "Use lora_format diffusers; the file also loads in other tools."),
    "use_dora": (_OFF, "Leave use_dora off."),
    "init_lora": (_OFF, "Start from the base model; starting from an adapter is not built yet."),
    "controlnet": (_OFF, "Leave controlnet off."),
    "control": (_OFF, "Leave control off."),
    "train_text_encoder": (_OFF, "Train the transformer only."),
    "trust_remote_code": (_OFF, "Remote code is never run on a training machine."),
    "push_to_hub": (_OFF, "Results are delivered through the control plane; publish from there."),
    "push_checkpoints_to_hub": (_OFF, "Results are delivered through the control plane; publish from there."),
    "publishing_config": (_OFF, "Results are delivered through the control plane; publish from there."),
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

_LIMITS: dict[str, tuple[float, float]] = {
    "lora_rank": (1, 1024), "lora_dropout": (0, 0.99), "train_batch_size": (1, 1024), "learning_rate": (0, 1),
    "gradient_accumulation_steps": (1, 4096), "max_train_steps": (0, 10_000_000), "num_train_epochs": (0, 100_000),
    "lr_warmup_steps": (0, 10_000_000), "lr_end": (0, 1), "max_grad_norm": (0, 1e6), "resolution": (0.01, 8192),
    "aspect_bucket_rounding": (1, 9), "aspect_bucket_alignment": (8, 512), "tokenizer_max_length": (1, 512),
    "caption_dropout_probability": (0, 1), "ema_decay": (0, 1), "ema_update_interval": (1, 100_000),
    "checkpoint_step_interval": (1, 10_000_000), "checkpoints_total_limit": (1, 1000), "vae_batch_size": (1, 256),
    "validation_step_interval": (1, 10_000_000), "validation_num_inference_steps": (1, 1000), "seed": (0, 2**63 - 1),
    "num_validation_images": (1, 64), "webhook_reporting_interval": (1, 100_000), "flow_schedule_shift": (0, 100),
    "adam_beta1": (0, 0.999999), "adam_beta2": (0, 0.999999), "adam_weight_decay": (0, 10), "adam_epsilon": (1e-16, 1),
    "validation_seed": (0, 2**63 - 1), "flux_guidance_value": (0, 100), "flow_sigmoid_scale": (0.001, 100),
}  # fmt: skip

_FIELDS = {field.name: field for field in msgspec.structs.fields(TrainingSpec) if field.name != "ignored_keys"}
KNOWN_KEYS = frozenset(_FIELDS) | IGNORED | frozenset(REFUSED) | frozenset(ALIASES)
_SIZES = re.compile(r"^\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?(\s*,\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?)*\s*$")
_JSON_FIELDS = {"peft_lora_target_modules", "user_prompt_library"}
_TEXT_FIELDS = {
    "pretrained_model_name_or_path", "revision", "variant", "validation_prompt", "modelspec_comment",
    "validation_resolution", "resume_from_checkpoint",
}  # fmt: skip


def check_config(config: dict[str, Any]) -> TrainingSpec:
    """Check a submitted `--key` dict (dashes optional) and return its typed form.

    Strings such as "true", "16" and "None" are read as what they say. Raises ConfigRejected with every problem.
    """
    problems: list[FieldProblem] = []
    values: dict[str, Any] = {}
    ignored: list[str] = []
    for given, raw in config.items():
        name = ALIASES.get(bare_key(given), bare_key(given))
        value = coerced(raw)
        if name in values:
            problems.append(_problem(given, "duplicate", f"{name} is given twice", "Keep one of the spellings."))
        elif name in _FIELDS:
            if isinstance(value, list | dict) and name not in _JSON_FIELDS:
                problems.append(not_one_value(name, cast("object", value)))
                values[name] = None
            else:
                values[name] = raw if name in _TEXT_FIELDS and value is not None else value
        elif name in REFUSED:
            problems.extend(_refusal(given, name, value))
        elif name in IGNORED:
            ignored.append(name)
        else:
            problems.append(unknown_key(given, bare_key(given), KNOWN_KEYS))
    problems.extend(_family_problems(values, {problem.field for problem in problems}))
    problems.extend(_optimizer_problems(values))
    checked = _typed(values, problems)
    problems.extend(_range_problems(checked))
    checked.update(_steps_or_epochs(checked, problems))
    if problems:
        raise ConfigRejected(problems)
    return msgspec.convert({**checked, "ignored_keys": sorted(ignored)}, TrainingSpec)


def bare_key(given: str) -> str:
    """`--lora-rank`, `--lora_rank` and `lora_rank` are one key."""
    return given.lstrip("-").replace("-", "_")


def coerced(value: Any) -> Any:
    """Read what a string says: "true", "1e-4" and "None" are common in configs written by web forms."""
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word.lower() in {"true", "false"}:
        return word.lower() == "true"
    if word.lower() in {"none", "null", ""}:
        return None
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word


def unknown_key(given: str, name: str, known: frozenset[str]) -> FieldProblem:
    """The problem for a key nobody knows, naming the nearest one that exists."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    advice = f"Did you mean {nearest[0]}?" if nearest else "Remove it."
    return _problem(given, "unknown_key", f"{name} is not a known key", advice)


def not_one_value(field: str, value: object) -> FieldProblem:
    """The problem for a list or an object where one value is meant."""
    kind = "a list" if isinstance(value, list) else "an object"
    return _problem(field, "wrong_type", f"one value is meant here, not {kind}", "Give one value, or remove the key.")


def _problem(field: str, code: ProblemCode, message: str, advice: str) -> FieldProblem:
    return FieldProblem(field=field, code=code, message=message, advice=advice)


def _refusal(given: str, name: str, value: object) -> list[FieldProblem]:
    inactive, advice = REFUSED[name]
    word = value.lower() if isinstance(value, str) else value
    if word in inactive:
        return []
    return [_problem(given, "unsupported", f"{name}={shown(value)} is known; this build does not support it", advice)]


def _family_problems(values: dict[str, Any], named: set[str]) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    for name, built, others in (("model_family", "flux", OTHER_FAMILIES), ("model_type", "lora", frozenset({"full"}))):
        value = values.get(name)
        if value is None and name not in named:
            problems.append(_problem(name, "missing", f"{name} is required", f"Set {name} to {built}."))
        elif value in others:
            message = f"{value} is known; this build trains {built}"
            problems.append(_problem(name, "unsupported", message, f"Set {name} to {built}."))
            values.pop(name)
    return problems


def _optimizer_problems(values: dict[str, Any]) -> list[FieldProblem]:
    name = values.get("optimizer")
    if name not in OTHER_OPTIMIZERS:
        return []
    values.pop("optimizer")
    return [_problem("optimizer", "unsupported", f"{name} is known; this build trains with adamw", "Use adamw.")]


def _typed(values: dict[str, Any], problems: list[FieldProblem]) -> dict[str, Any]:
    """Convert each value to its field's type; a None stands for the default. Problems are appended."""
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if value is None and name not in {"revision", "variant", "resume_from_checkpoint"}:
            continue
        try:
            checked[name] = converted(_shaped(name, value), _FIELDS[name].type)
        except (ValueError, RecursionError) as error:
            message = f"{shown(value)} does not fit: {error}"
            problems.append(_problem(name, "wrong_type", message, "Correct the value, or remove the key."))
    return checked


def _shaped(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS and isinstance(value, str):
        return json.loads(value)
    if name in _TEXT_FIELDS and isinstance(value, int | float):
        return str(value)
    if name == "mixed_precision" and value in {False, "fp32"}:
        return "no"
    if name in {"flux_lora_target", "lora_init_type"} and isinstance(value, bool):
        return "gaussian" if not value and name == "lora_init_type" else value
    return value


def _range_problems(checked: dict[str, Any]) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    for name, (low, high) in _LIMITS.items():
        value = cast("float | None", checked.get(name))
        if value is not None and not low <= value <= high:
            message = f"{value} is outside {low:g} to {high:g}"
            problems.append(_problem(name, "out_of_range", message, f"Choose a value from {low:g} to {high:g}."))
    sizes = str(checked.get("validation_resolution", "256"))
    if not _SIZES.match(sizes):
        message = f"{shown(sizes)} is not a list of sizes"
        problems.append(_problem("validation_resolution", "wrong_type", message, "Use 1024, or 1024,1280x768."))
    return problems


def _steps_or_epochs(checked: dict[str, Any], problems: list[FieldProblem]) -> dict[str, int]:
    """Exactly one of steps and epochs drives the length; with neither given it is one epoch."""
    steps, epochs = checked.get("max_train_steps"), checked.get("num_train_epochs")
    if steps and epochs:
        advice = "Set num_train_epochs to 0 to count steps, or max_train_steps to 0 to count epochs."
        problems.append(_problem("max_train_steps", "conflict", "both steps and epochs are set", advice))
    if steps == 0 and epochs == 0:
        problems.append(_problem("max_train_steps", "conflict", "steps and epochs are both 0", "Set one of them."))
    if not steps and epochs is None:
        return {"max_train_steps": 0, "num_train_epochs": 1}
    return {"max_train_steps": steps or 0, "num_train_epochs": epochs or 0}
