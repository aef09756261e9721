"""The `--key` configuration of a diffusion model: which keys exist, what they mean, one checker for both sides.

The gateway checks at submit and the trainer again at start, so a config that was accepted is never refused on the paid
machine. Every known key has exactly one rule: used, ignored (it changes nothing in the result) or refused by name. Key
names follow SimpleTuner's configuration files.
"""

import json
import re
from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.base_names import FLAVOURS, family_of_base
from shared.contracts.training.datasets import INHERITED
from shared.contracts.training.delivery import DELIVERY_KEYS, check_delivery
from shared.contracts.training.diffusion_keys import ALIASES, IGNORED, OTHER_FAMILIES, REFUSED
from shared.contracts.training.diffusion_rules import (
    OTHER_OPTIMIZERS,
    OTHER_PRECISIONS,
    conflict_problems,
    family_problems,
    without_effect,
)
from shared.contracts.training.families import FAMILIES, FAMILY_ALIASES, DiffusionFamily, family_defaults
from shared.contracts.training.loop import COMMON_LIMITS, CommonSpec, range_problems, size_in_bytes, steps_or_epochs
from shared.contracts.training.problems import ConfigRejected, FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown

FluxTarget = Literal["all", "all+ffs", "all+ffs+embedder", "context", "context+ffs", "ai-toolkit", "tiny", "nano"]
CaptionStrategy = Literal["textfile", "filename", "instanceprompt", "parquet"]
DEFAULT_NEGATIVE_PROMPT = "blurry, cropped, ugly"
_FULL_LEARNING_RATE = 1e-5
_PIXELS_PER_MEGAPIXEL = 1_000_000


class DiffusionSpec(CommonSpec, frozen=True, kw_only=True):
    """A checked training of a diffusion model. Fields are the keys without dashes; defaults are those of the keys.

    What a family sets (`families.family_defaults`) has no default here.
    """

    model_family: DiffusionFamily
    pretrained_transformer_model_name_or_path: str | None = None
    pretrained_unet_model_name_or_path: str | None = None
    pretrained_vae_model_name_or_path: str | None = None
    pretrained_t5_model_name_or_path: str | None = None
    resolution: float
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    aspect_bucket_rounding: int = 2
    aspect_bucket_alignment: int = 64
    disable_bucket_pruning: bool = False
    allow_dataset_oversubscription: bool = False
    data_backend_sampling: Literal["auto-weighting", "uniform"] = "auto-weighting"
    caption_strategy: CaptionStrategy | None = None
    instance_prompt: str | None = None
    prepend_instance_prompt: bool | None = None
    only_instance_prompt: bool | None = None
    disable_multiline_split: bool | None = None
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None
    max_upscale_threshold: float | None = None
    tokenizer_max_length: int
    flux_lora_target: FluxTarget = "all"
    flux_guidance_value: float = 1.0
    prediction_type: Literal["epsilon", "v_prediction", "flow_matching"] | None = None
    """What the base predicts, where its scheduler does not say so itself."""
    rescale_betas_zero_snr: bool = False
    snr_gamma: float | None = None
    loss_type: Literal["l2", "huber", "smooth_l1"] = "l2"
    huber_c: float = 0.1
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    offset_noise: bool = False
    noise_offset: float = 0.1
    noise_offset_probability: float = 0.25
    input_perturbation: float = 0
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    timestep_bias_begin: int = 0
    timestep_bias_end: int = 1000
    timestep_bias_multiplier: float = 1.0
    timestep_bias_portion: float = 0.25
    flow_schedule_shift: float
    flow_schedule_auto_shift: bool = False
    flow_sigmoid_scale: float = 1.0
    flow_use_uniform_schedule: bool = False
    flow_use_beta_schedule: bool = False
    flow_beta_schedule_alpha: float = 2.0
    flow_beta_schedule_beta: float = 2.0
    flow_custom_timesteps: str | None = None
    """Noise levels to draw from, separated by commas: all in 0..1, or steps up to 1000."""
    caption_dropout_probability: float = 0.1
    ema_validation: Literal["none", "ema_only", "comparison"] = "comparison"
    vae_batch_size: int = 4
    vae_enable_tiling: bool = False
    validation_prompt: str | None = None
    validation_negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    user_prompt_library: dict[str, str] | None = None
    validation_resolution: str = "256"
    validation_guidance: float
    validation_num_inference_steps: int = 30
    validation_seed: int | None = None
    num_validation_images: int = 1
    eval_loss_disable: bool = False
    eval_steps_interval: int | None = None
    eval_epoch_interval: int | None = None
    eval_dataset_id: str | None = None
    num_eval_images: int = 4
    eval_timesteps: int = 28
    dataloader_prefetch: bool | None = None
    """Make batches ahead in a thread; None means where a GPU would wait for them."""
    dataloader_prefetch_qlen: int = 10


_LIMITS: dict[str, tuple[float, float]] = {
    **COMMON_LIMITS,
    "resolution": (0.01, 8192), "aspect_bucket_rounding": (1, 9), "aspect_bucket_alignment": (8, 512),
    "tokenizer_max_length": (1, 2048), "caption_dropout_probability": (0, 1), "vae_batch_size": (1, 256),
    "minimum_image_size": (0, 100_000), "maximum_image_size": (0.01, 100_000),
    "target_downsample_size": (0.01, 100_000), "max_upscale_threshold": (0, 100),
    "validation_num_inference_steps": (1, 1000), "validation_guidance": (0, 100), "num_validation_images": (1, 64),
    "validation_seed": (0, 2**63 - 1), "flux_guidance_value": (0, 100), "snr_gamma": (0.01, 1000),
    "huber_c": (1e-6, 1), "noise_offset": (0, 1), "noise_offset_probability": (0, 1), "input_perturbation": (0, 1),
    "timestep_bias_begin": (0, 1000), "timestep_bias_end": (0, 1000), "timestep_bias_multiplier": (0, 1e6),
    "timestep_bias_portion": (0, 1), "flow_schedule_shift": (0, 100), "flow_sigmoid_scale": (0.001, 100),
    "flow_beta_schedule_alpha": (0.01, 100), "flow_beta_schedule_beta": (0.01, 100), "eval_timesteps": (1, 1000),
    "eval_steps_interval": (1, 10_000_000), "eval_epoch_interval": (1, 100_000), "num_eval_images": (1, 100_000),
    "dataloader_prefetch_qlen": (1, 1000),
}  # fmt: skip

_FIELDS = {
    field.name: field
    for field in msgspec.structs.fields(DiffusionSpec)
    if field.name not in {"ignored_keys", "delivery"}
}
_DEFAULTS = {name: field.default for name, field in _FIELDS.items()}
KNOWN_KEYS = (
    frozenset(_FIELDS)
    | DELIVERY_KEYS
    | IGNORED
    | frozenset(REFUSED)
    | frozenset(ALIASES)
    | {"model_flavour", "optimizer_config"}
)
_SIZES = re.compile(r"^\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?(\s*,\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?)*\s*$")
_JSON_FIELDS = {"peft_lora_target_modules", "user_prompt_library"}
_TEXT_FIELDS = {
    "pretrained_model_name_or_path", "pretrained_transformer_model_name_or_path", "pretrained_unet_model_name_or_path",
    "pretrained_vae_model_name_or_path", "pretrained_t5_model_name_or_path", "revision", "variant", "instance_prompt",
    "validation_prompt", "validation_negative_prompt", "modelspec_comment", "validation_resolution", "eval_dataset_id",
    "resume_from_checkpoint", "init_lora", "disk_low_threshold", "flow_custom_timesteps",
}  # fmt: skip
_OFF_WHEN_FALSE = {"prediction_type", "snr_gamma", "flow_custom_timesteps", "init_lora", "disk_low_threshold"}
_EMPTY_IS_A_VALUE = {"validation_negative_prompt"}
_NONE_IS_A_VALUE = {"revision", "variant", "resume_from_checkpoint"}


def check_diffusion(config: dict[str, Any]) -> DiffusionSpec:
    """Check a submitted `--key` dict (dashes optional) and return its typed form.

    Strings such as "true", "16" and "None" are read as what they say. Raises ConfigRejected with every problem.
    """
    problems: list[FieldProblem] = []
    ignored: set[str] = set()
    values = _sorted_keys(config, problems, ignored)
    family = _family(values, config, {each.field for each in problems}, problems)
    _choose_base(values, family, ignored, problems)
    _choice_problems(values, problems)
    checked = _typed(values, problems)
    is_plain_lora = checked.get("model_type", "lora") == "lora" and not checked.get("use_dora")
    delivery = check_delivery(config, family=checked.get("model_family"), plain_lora=is_plain_lora, problems=problems)
    problems.extend(range_problems(checked, _LIMITS))
    problems.extend(_shape_problems(checked))
    problems.extend(conflict_problems(checked))
    checked.update(steps_or_epochs(checked, problems))
    if family is not None:
        problems.extend(family_problems(checked, _DEFAULTS, family))
    if family is None or problems:
        raise ConfigRejected(problems)
    ignored |= without_effect(checked, _DEFAULTS, family)
    defaults = family_defaults(family)
    if checked["model_type"] == "full":
        defaults["learning_rate"] = _FULL_LEARNING_RATE
    if checked.get("resolution_type") == "area":
        defaults["resolution"] = round(defaults["resolution"] ** 2 / _PIXELS_PER_MEGAPIXEL, 2)
    return msgspec.convert(
        {**defaults, **checked, "ignored_keys": sorted(ignored), "delivery": delivery}, DiffusionSpec
    )


def inherited_settings(spec: DiffusionSpec) -> dict[str, Any]:
    """What the config sets for every dataset that does not set it itself."""
    given = {name: getattr(spec, name) for name in INHERITED}
    return {name: value for name, value in given.items() if value is not None}


def _sorted_keys(config: dict[str, Any], problems: list[FieldProblem], ignored: set[str]) -> dict[str, Any]:
    """The values of the keys that are used; all other keys become a problem, or go to `ignored`."""
    values: dict[str, Any] = {}
    delivered: set[str] = set()
    for given, raw in config.items():
        name = ALIASES.get(bare_key(given), bare_key(given))
        value = coerced(raw)
        if name in values or name in delivered:
            problems.append(problem(given, "duplicate", f"{name} is given twice", "Keep one of the spellings."))
        elif name in _FIELDS or name == "model_flavour":
            if isinstance(value, list | dict) and name not in _JSON_FIELDS:
                problems.append(not_one_value(name, cast("object", value)))
                values[name] = None
            else:
                is_empty_text = name in _EMPTY_IS_A_VALUE and raw == ""
                values[name] = raw if is_empty_text or (name in _TEXT_FIELDS and value is not None) else value
        elif name in DELIVERY_KEYS:
            delivered.add(name)
        elif name == "optimizer_config":
            _read_optimizer_config(given, value, values, problems)
        elif name in REFUSED:
            problems.extend(_refusal(given, name, value))
        elif name in IGNORED:
            ignored.add(name)
        else:
            problems.append(unknown_key(given, bare_key(given), KNOWN_KEYS))
    return values


def _refusal(given: str, name: str, value: object) -> list[FieldProblem]:
    inactive, advice = REFUSED[name]
    word = value.lower() if isinstance(value, str) else value
    if word in inactive:
        return []
    return [problem(given, "unsupported", f"{name}={shown(value)} is known; this build does not support it", advice)]


_OPTIMIZER_SETTINGS = {
    "weight_decay": "adam_weight_decay", "eps": "adam_epsilon", "beta1": "adam_beta1", "beta2": "adam_beta2",
}  # fmt: skip


def _read_optimizer_config(given: str, value: object, values: dict[str, Any], problems: list[FieldProblem]) -> None:
    """`k=v,k=v` as the keys that mean the same."""
    if value is None:
        return
    for part in str(value).split(","):
        name, _, setting = (piece.strip() for piece in part.partition("="))
        key = _OPTIMIZER_SETTINGS.get(name)
        if key is None or not setting:
            advice = f"Give {', '.join(_OPTIMIZER_SETTINGS)} as name=value, separated by commas."
            problems.append(problem(given, "unsupported", f"{shown(part)} is no setting that is known here", advice))
        elif key in values:
            problems.append(problem(given, "duplicate", f"{name} sets {key} again", "Keep one of the two."))
        else:
            values[key] = coerced(setting)


def _family(
    values: dict[str, Any], config: dict[str, Any], named: set[str], problems: list[FieldProblem]
) -> str | None:
    """The family, as given or as the base's name tells; None when it is refused. The model type is checked too."""
    base = values.get("pretrained_model_name_or_path")
    if "model_family" not in values and isinstance(base, str) and (told := family_of_base(base)) is not None:
        values["model_family"] = told
    if "model_type" not in values and any(bare_key(each) == "model_name" for each in config):
        values["model_type"] = "lora"  # the short form of a config names neither
    known = ", ".join(FAMILIES)
    for name, options in (("model_family", known), ("model_type", "lora or full")):
        if values.get(name) is None and name not in named:
            problems.append(problem(name, "missing", f"{name} is required", f"Set {name} to one of {options}."))
    family = values.get("model_family")
    if not isinstance(family, str):
        return None
    family = values["model_family"] = FAMILY_ALIASES.get(family, family)
    if family in OTHER_FAMILIES:
        message = f"{family} is known; this build does not train it"
        problems.append(problem("model_family", "unsupported", message, f"Use one of {known}."))
        values.pop("model_family")
    return family if family in FAMILIES else None


def _choose_base(values: dict[str, Any], family: str | None, ignored: set[str], problems: list[FieldProblem]) -> None:
    """A flavour names a base, unless the base is named itself."""
    flavour = values.pop("model_flavour", None)
    if flavour is None or family is None:
        return
    flavours = FLAVOURS.get(family, {})
    if values.get("pretrained_model_name_or_path") is not None:
        ignored.add("model_flavour")
    elif str(flavour) in flavours:
        values["pretrained_model_name_or_path"] = flavours[str(flavour)]
    else:
        message = f"{shown(flavour)} is no flavour of {family} that is known here"
        advice = f"Give pretrained_model_name_or_path, or one of {', '.join(flavours) or 'no flavour'}."
        problems.append(problem("model_flavour", "unsupported", message, advice))


def _choice_problems(values: dict[str, Any], problems: list[FieldProblem]) -> None:
    """Names of things that exist and are not built: refused with the nearest that is."""
    for name, others in (("optimizer", OTHER_OPTIMIZERS), ("base_model_precision", OTHER_PRECISIONS)):
        value = values.get(name)
        if isinstance(value, str) and value in others:
            values.pop(name)
            message = f"{value} is known; this build does not have it"
            problems.append(problem(name, "unsupported", message, f"Use {others[value]}."))


def _typed(values: dict[str, Any], problems: list[FieldProblem]) -> dict[str, Any]:
    """Convert each value to its field's type; a None stands for the default. Problems are appended."""
    checked: dict[str, Any] = {}
    for name, value in values.items():
        off = value is False and name in _OFF_WHEN_FALSE
        if off or (value is None and name not in _NONE_IS_A_VALUE):
            continue
        try:
            checked[name] = converted(_shaped(name, value), _FIELDS[name].type)
        except (ValueError, RecursionError) as error:
            message = f"{shown(value)} does not fit: {error}"
            problems.append(problem(name, "wrong_type", message, "Correct the value, or remove the key."))
    return checked


_READ_AS: dict[tuple[str, object], str] = {
    ("mixed_precision", False): "no",
    ("mixed_precision", "fp32"): "no",
    ("base_model_precision", False): "no_change",
    ("base_model_precision", "no"): "no_change",
    ("base_model_precision", "fp32"): "no_change",
    ("timestep_bias_strategy", False): "none",
    ("dynamo_backend", False): "no",
    ("lora_init_type", True): "default",
    ("lora_init_type", False): "gaussian",
}
"""Other spellings of a choice, by key."""


def _shaped(name: str, value: Any) -> Any:
    if name == "peft_lora_target_modules" and isinstance(value, str) and not value.lstrip().startswith("["):
        return [each.strip() for each in value.split(",")]
    if name in _JSON_FIELDS:
        return json.loads(value) if isinstance(value, str) else value
    if name in _TEXT_FIELDS and isinstance(value, int | float):
        return str(value)
    return _READ_AS.get((name, value), value)


def _shape_problems(checked: dict[str, Any]) -> list[FieldProblem]:
    """Texts that have to be read: sizes, and times of flow matching."""
    problems: list[FieldProblem] = []
    sizes = str(checked.get("validation_resolution", "256"))
    if not _SIZES.match(sizes):
        message = f"{shown(sizes)} is not a list of sizes"
        problems.append(problem("validation_resolution", "wrong_type", message, "Use 1024, or 1024,1280x768."))
    for name, read in (("disk_low_threshold", size_in_bytes), ("flow_custom_timesteps", _check_times)):
        text = checked.get(name)
        try:
            if text is not None:
                read(text)
        except ValueError as error:
            problems.append(problem(name, "wrong_type", f"{shown(text)} does not fit: {error}", "Correct the value."))
    return problems


def _check_times(text: str) -> None:
    times = [float(part) for part in text.split(",")]
    if not all(0 < time <= 1000 for time in times):  # noqa: PLR2004 -- steps of every base
        message = "each time is a level in 0..1 or a step up to 1000"
        raise ValueError(message)
