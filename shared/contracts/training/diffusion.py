"""The `--key` configuration of a diffusion model: which keys exist, what they mean, one checker for both sides.

The gateway checks at submit and the trainer again at start, so a config that was accepted is never refused on the paid
machine. Every known key has exactly one rule: used, ignored (harmless here) or refused (would change the result and is
not built yet). Key names follow SimpleTuner's configuration files.
"""

import json
import re
from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.delivery import DELIVERY_KEYS, check_delivery
from shared.contracts.training.diffusion_keys import ALIASES, IGNORED, OTHER_FAMILIES, OTHER_OPTIMIZERS, REFUSED
from shared.contracts.training.loop import COMMON_LIMITS, CommonSpec, range_problems, steps_or_epochs
from shared.contracts.training.problems import ConfigRejected, FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown

FluxTarget = Literal["all", "all+ffs", "all+ffs+embedder", "context", "context+ffs", "ai-toolkit", "tiny", "nano"]


class DiffusionSpec(CommonSpec, frozen=True, kw_only=True):
    """A checked training of a diffusion model. Fields are the keys without dashes; defaults are those of the keys."""

    model_family: Literal["flux"]
    pretrained_model_name_or_path: str = "black-forest-labs/FLUX.1-dev"
    resolution: float = 1024
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    aspect_bucket_rounding: int = 2
    aspect_bucket_alignment: int = 64
    disable_bucket_pruning: bool = False
    tokenizer_max_length: int | None = None
    flux_lora_target: FluxTarget = "all"
    flux_guidance_value: float = 1.0
    flow_schedule_shift: float = 3.0
    flow_schedule_auto_shift: bool = False
    flow_sigmoid_scale: float = 1.0
    flow_use_uniform_schedule: bool = False
    caption_dropout_probability: float = 0.1
    ema_validation: Literal["none", "ema_only", "comparison"] = "comparison"
    vae_batch_size: int = 4
    validation_prompt: str | None = None
    user_prompt_library: dict[str, str] | None = None
    validation_resolution: str = "256"
    validation_guidance: float = 7.5
    validation_num_inference_steps: int = 30
    validation_seed: int | None = None
    num_validation_images: int = 1


_LIMITS: dict[str, tuple[float, float]] = {
    **COMMON_LIMITS,
    "resolution": (0.01, 8192),
    "aspect_bucket_rounding": (1, 9),
    "aspect_bucket_alignment": (8, 512),
    "tokenizer_max_length": (1, 512),
    "caption_dropout_probability": (0, 1),
    "vae_batch_size": (1, 256),
    "validation_num_inference_steps": (1, 1000),
    "num_validation_images": (1, 64),
    "flow_schedule_shift": (0, 100),
    "validation_seed": (0, 2**63 - 1),
    "flux_guidance_value": (0, 100),
    "flow_sigmoid_scale": (0.001, 100),
}

_FIELDS = {
    field.name: field
    for field in msgspec.structs.fields(DiffusionSpec)
    if field.name not in {"ignored_keys", "delivery"}
}
KNOWN_KEYS = frozenset(_FIELDS) | DELIVERY_KEYS | IGNORED | frozenset(REFUSED) | frozenset(ALIASES)
_SIZES = re.compile(r"^\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?(\s*,\s*[1-9]\d{0,4}(x[1-9]\d{0,4})?)*\s*$")
_JSON_FIELDS = {"peft_lora_target_modules", "user_prompt_library"}
_TEXT_FIELDS = {
    "pretrained_model_name_or_path", "revision", "variant", "validation_prompt", "modelspec_comment",
    "validation_resolution", "resume_from_checkpoint",
}  # fmt: skip


def check_diffusion(config: dict[str, Any]) -> DiffusionSpec:
    """Check a submitted `--key` dict (dashes optional) and return its typed form.

    Strings such as "true", "16" and "None" are read as what they say. Raises ConfigRejected with every problem.
    """
    problems: list[FieldProblem] = []
    values: dict[str, Any] = {}
    ignored: list[str] = []
    delivered: set[str] = set()
    for given, raw in config.items():
        name = ALIASES.get(bare_key(given), bare_key(given))
        value = coerced(raw)
        if name in values or name in delivered:
            problems.append(problem(given, "duplicate", f"{name} is given twice", "Keep one of the spellings."))
        elif name in _FIELDS:
            if isinstance(value, list | dict) and name not in _JSON_FIELDS:
                problems.append(not_one_value(name, cast("object", value)))
                values[name] = None
            else:
                values[name] = raw if name in _TEXT_FIELDS and value is not None else value
        elif name in DELIVERY_KEYS:
            delivered.add(name)
        elif name in REFUSED:
            problems.extend(_refusal(given, name, value))
        elif name in IGNORED:
            ignored.append(name)
        else:
            problems.append(unknown_key(given, bare_key(given), KNOWN_KEYS))
    problems.extend(_family_problems(values, {each.field for each in problems}))
    problems.extend(_optimizer_problems(values))
    checked = _typed(values, problems)
    is_plain_lora = checked.get("model_type", "lora") == "lora" and not checked.get("use_dora")
    delivery = check_delivery(config, family=checked.get("model_family"), plain_lora=is_plain_lora, problems=problems)
    problems.extend(range_problems(checked, _LIMITS))
    problems.extend(_size_problems(checked))
    checked.update(steps_or_epochs(checked, problems))
    if problems:
        raise ConfigRejected(problems)
    return msgspec.convert({**checked, "ignored_keys": sorted(ignored), "delivery": delivery}, DiffusionSpec)


def _refusal(given: str, name: str, value: object) -> list[FieldProblem]:
    inactive, advice = REFUSED[name]
    word = value.lower() if isinstance(value, str) else value
    if word in inactive:
        return []
    return [problem(given, "unsupported", f"{name}={shown(value)} is known; this build does not support it", advice)]


def _family_problems(values: dict[str, Any], named: set[str]) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    for name, built, others in (("model_family", "flux", OTHER_FAMILIES), ("model_type", "lora", frozenset({"full"}))):
        value = values.get(name)
        if value is None and name not in named:
            problems.append(problem(name, "missing", f"{name} is required", f"Set {name} to {built}."))
        elif value in others:
            message = f"{value} is known; this build trains {built}"
            problems.append(problem(name, "unsupported", message, f"Set {name} to {built}."))
            values.pop(name)
    return problems


def _optimizer_problems(values: dict[str, Any]) -> list[FieldProblem]:
    name = values.get("optimizer")
    if name not in OTHER_OPTIMIZERS:
        return []
    values.pop("optimizer")
    return [problem("optimizer", "unsupported", f"{name} is known; this build trains with adamw", "Use adamw.")]


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
            problems.append(problem(name, "wrong_type", message, "Correct the value, or remove the key."))
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


def _size_problems(checked: dict[str, Any]) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    sizes = str(checked.get("validation_resolution", "256"))
    if not _SIZES.match(sizes):
        message = f"{shown(sizes)} is not a list of sizes"
        problems.append(problem("validation_resolution", "wrong_type", message, "Use 1024, or 1024,1280x768."))
    return problems
