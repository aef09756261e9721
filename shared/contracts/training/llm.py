"""The training of a language model: brief configs with sections (`model`, `training`, `predictions`, ...) or flat keys.

The gateway checks at submit and the trainer again at start, with this code. Every leaf of the config has one meaning:
a field, a switch that decides fields, ignored, or refused by name with the nearest name that is known.
"""

import json
from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.delivery import DELIVERY_KEYS, check_delivery
from shared.contracts.training.llm_keys import (
    ALIASES,
    DATASET_SECTIONS,
    IGNORED,
    REFUSED,
    SECTION_NAMES,
    SECTIONS,
)
from shared.contracts.training.loop import COMMON_LIMITS, CommonSpec, Scheduler, range_problems, steps_or_epochs
from shared.contracts.training.problems import ConfigRejected, FieldProblem, not_one_value, problem, unknown_key
from shared.contracts.training.values import bare_key, coerced, converted, shown

Method = Literal["sft", "dpo"]
Quantization = Literal["none", "4bit", "8bit"]


class LlmSpec(CommonSpec, frozen=True, kw_only=True):
    """A checked training of a language model; defaults are those that its users know."""

    model_type: Literal["lora", "full"] = "lora"
    method: Method = "sft"
    lora_dropout: float = 0.0
    use_rslora: bool = False
    lr_scheduler: Scheduler = "linear"
    lr_end: float = 0.0
    warmup_ratio: float = 0.0
    """The share of all steps that the rate rises in; used when lr_warmup_steps is 0."""
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    grad_clip_method: Literal["value", "norm"] = "norm"
    max_length: int = 1024
    """Tokens of one example; the rest is cut off."""
    packing: bool = False
    completion_only_loss: bool = True
    chat_template: str | None = None
    """A Jinja template, or `chatml`; None means the tokenizer's own."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False
    quantization: Quantization = "none"
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True
    eval_split: float = 0.0
    """The share of the rows that is held out and never trained on."""
    validate_each_epoch: bool = False
    save_each_epoch: bool = False
    predictions_enabled: bool = False
    prediction_count: int = 5
    prediction_max_length: int = 64
    """New tokens of one prediction."""
    merge_and_save: bool = False


class LlmSwitches(msgspec.Struct, frozen=True, kw_only=True):
    """What decides other fields and is no field itself."""

    use_lora: bool | None = None
    full_finetuning: bool | None = None
    load_in_4bit: bool | None = None
    load_in_8bit: bool | None = None
    quantized: bool | None = None
    quantization_bits: Literal[4, 8, 16, 32] | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    eval_enabled: bool | None = None
    eval_strategy: Literal["epoch", "steps", "no"] | None = None
    save_strategy: Literal["epoch", "steps", "no"] | None = None
    prediction_frequency: Literal["epoch", "step", "steps"] | int | None = None
    prediction_steps: int | None = None


_LIMITS: dict[str, tuple[float, float]] = {
    **COMMON_LIMITS,
    "max_length": (2, 1_048_576),
    "warmup_ratio": (0, 1),
    "beta": (1e-6, 1000),
    "label_smoothing": (0, 0.5),
    "eval_split": (0, 0.9),
    "prediction_count": (1, 1000),
    "prediction_max_length": (1, 4096),
    "prediction_steps": (1, 10_000_000),
}
_FIELDS = {
    field.name: field
    for struct in (LlmSpec, LlmSwitches)
    for field in msgspec.structs.fields(struct)
    if field.name not in {"ignored_keys", "validate_each_epoch", "save_each_epoch", "delivery", *REFUSED}
}
KNOWN_KEYS = (
    frozenset(_FIELDS) | DELIVERY_KEYS | DATASET_SECTIONS
    | ALIASES.keys() | IGNORED | REFUSED.keys() | SECTIONS.keys() | SECTION_NAMES.keys()
)  # fmt: skip
_TEXT_FIELDS = {"pretrained_model_name_or_path", "revision", "chat_template", "variant", "modelspec_comment"}
_WORDS: dict[str, dict[object, object]] = {
    "mixed_precision": {
        "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "auto": "bf16",
        "float32": "no", "fp32": "no", False: "no",
    },
    "optimizer": {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_8bit": "bnb-adamw8bit",
        "adamw_bnb_8bit": "bnb-adamw8bit", "paged_adamw_8bit": "bnb-adamw8bit-paged",
    },
    "lora_init_type": {True: "default"},
    "quantization": {
        "int4": "4bit", "nf4": "4bit", "fp4": "4bit", "4": "4bit", 4: "4bit", "int8": "8bit", "8": "8bit", 8: "8bit",
        False: "none", "bnb-4bit": "4bit", "bnb-8bit": "8bit",
    },
    "eval_strategy": {"step": "steps", False: "no"},
    "save_strategy": {"step": "steps", False: "no"},
    "use_lora": {"lora": True, "qlora": True, "full": False},
    "peft_lora_target_modules": {"all-linear": None, "all": None},
}  # fmt: skip
_LISTS = {"peft_lora_target_modules"}
_FAMILY = "model_family"
"""Chose this check; means nothing in it."""
_FAMILIES = {"llm", "causal_lm"}
_MARKS = {"model", "model_name", "model_name_or_path", "base_model", "training", "method", "training_method"}


class _Leaf(msgspec.Struct, frozen=True):
    place: str
    """The key as submitted, with its sections: `training.lora_r`."""
    section: str
    key: str
    value: Any


def is_llm_config(config: dict[str, Any]) -> bool:
    """Whether a config is meant for a language model: by its family, or by sections and names only those have."""
    names = {bare_key(key): value for key, value in config.items()}
    family = names.get(_FAMILY)
    return str(family).lower() in _FAMILIES if family is not None else not _MARKS.isdisjoint(names)


def check_llm(config: dict[str, Any]) -> LlmSpec:
    """Check a submitted config and return its typed form. Raises ConfigRejected with every problem."""
    problems: list[FieldProblem] = []
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    ignored: list[str] = []
    delivered: dict[str, Any] = {name: config[name] for name in config if bare_key(name) == "output_dir"}
    for leaf in _leaves(config, problems):
        name = _meaning(leaf)
        value = coerced(leaf.value)
        if name in DELIVERY_KEYS:
            delivered[leaf.place] = leaf.value
        elif name in REFUSED:
            problems.extend(_refusal(leaf, name, value))
        elif name in IGNORED:
            ignored.extend([leaf.place] if name != _FAMILY else [])
        elif name not in _FIELDS:
            problems.append(unknown_key(leaf.place, leaf.key, _known_in(leaf.section)))
        elif name in values:
            problems.append(problem(leaf.place, "duplicate", f"{places[name]} says this too", "Keep one of the two."))
        else:
            values[name], places[name] = leaf.value if name in _TEXT_FIELDS and value is not None else value, leaf.place
    typed = _typed(values, places, problems)
    spec = _decided(typed, places, problems)
    spec["delivery"] = check_delivery(
        {place.rpartition(".")[2]: value for place, value in delivered.items()}, family=None, problems=problems,
        plain_lora=spec.get("model_type") != "full" and not spec.get("use_dora"),
    )  # fmt: skip
    problems.extend(range_problems({**typed, **spec}, _LIMITS))
    if problems:
        raise ConfigRejected(_placed(problems, places))
    return msgspec.convert({**spec, "ignored_keys": sorted(ignored)}, LlmSpec)


def planned_llm_steps(config: dict[str, Any]) -> int | None:
    """The number of updates an LLM config asks for; None when it counts epochs."""
    for leaf in _leaves(config, []):
        steps = coerced(leaf.value)
        if _meaning(leaf) == "max_train_steps" and isinstance(steps, int) and steps > 0:
            return steps
    return None


def _leaves(config: dict[str, Any], problems: list[FieldProblem]) -> list[_Leaf]:
    """Every value with the section it stands in; sections may be nested once, as `training.lora` is."""
    leaves: list[_Leaf] = []

    def walk(values: dict[str, Any], section: str, place: str, depth: int) -> None:
        for given, value in values.items():
            key = bare_key(given)
            inner = SECTION_NAMES.get(key, key)
            if section == "" and key in DATASET_SECTIONS:
                continue
            if key in DELIVERY_KEYS:
                leaves.append(_Leaf(f"{place}{given}", section, key, value))
            elif isinstance(value, dict) and inner in SECTIONS and depth < 2:  # noqa: PLR2004 -- top, section, its part
                walk(cast("dict[str, Any]", value), inner, f"{place}{given}.", depth + 1)
            elif isinstance(value, dict) or (isinstance(value, list) and ALIASES.get(key, key) not in _LISTS):
                if key not in IGNORED:
                    problems.append(not_one_value(f"{place}{given}", cast("object", value)))
            else:
                leaves.append(_Leaf(f"{place}{given}", section, key, value))

    walk(config, "", "", 0)
    return leaves


def _meaning(leaf: _Leaf) -> str:
    own = SECTIONS.get(leaf.section, {})
    if leaf.section == "" and leaf.key in SECTIONS and leaf.key != "model":
        # A section's name with one value: `quantization: 4bit`, `lora: true`, `predictions: false`.
        return {"lora": "use_lora", "quantization": "quantization", "predictions": "predictions_enabled"}.get(
            leaf.key, leaf.key
        )
    return own.get(leaf.key, ALIASES.get(leaf.key, leaf.key))


def _known_in(section: str) -> frozenset[str]:
    return KNOWN_KEYS | SECTIONS.get(section, {}).keys()


def _refusal(leaf: _Leaf, name: str, value: object) -> list[FieldProblem]:
    inactive, advice = REFUSED[name]
    if (value.lower() if isinstance(value, str) else value) in inactive:
        return []
    message = f"{leaf.key}={shown(value)} is known; this build does not support it"
    return [problem(leaf.place, "unsupported", message, advice)]


def _typed(values: dict[str, Any], places: dict[str, str], problems: list[FieldProblem]) -> dict[str, Any]:
    """Each value as its field's type; None stands for the default."""
    typed: dict[str, Any] = {}
    for name, given in values.items():
        try:
            value = _shaped(name, given)
            if value is not None:
                typed[name] = converted(value, _FIELDS[name].type)
        except (ValueError, RecursionError) as error:
            message = f"{shown(given)} does not fit: {error}"
            problems.append(problem(places[name], "wrong_type", message, "Correct the value, or remove the key."))
    return typed


def _shaped(name: str, value: Any) -> Any:
    word = value.strip().lower() if isinstance(value, str) and name not in _TEXT_FIELDS else value
    if name in _LISTS and isinstance(value, str) and word not in _WORDS[name]:
        return json.loads(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",")]
    if isinstance(word, list):
        return cast("list[Any]", word)
    if name in {"max_train_steps", "num_train_epochs"} and word == -1:
        return 0
    for known, meant in _WORDS.get(name, {}).items():
        if known == word and isinstance(known, bool) == isinstance(word, bool):
            return meant
    return str(value) if name in _TEXT_FIELDS else word


def _decided(typed: dict[str, Any], places: dict[str, str], problems: list[FieldProblem]) -> dict[str, Any]:
    """The fields of the spec: what was given, and what the switches decide. Contradictions are appended."""
    switches = {name: typed.get(name) for name in LlmSwitches.__struct_fields__}
    spec = {name: value for name, value in typed.items() if name not in switches}
    if "pretrained_model_name_or_path" not in typed and "pretrained_model_name_or_path" not in places:
        problems.append(problem("model", "missing", "no model is named", "Set model to a folder or a hub id."))
    _decide_kind(spec, switches, places, problems)
    _decide_precision(spec, switches, places, problems)
    _decide_intervals(spec, switches, places, problems)
    spec.update(steps_or_epochs(spec, problems))
    if "learning_rate" not in spec:
        usual = {("sft", "lora"): 2e-4, ("sft", "full"): 2e-5, ("dpo", "lora"): 1e-5, ("dpo", "full"): 1e-6}
        spec["learning_rate"] = usual[spec.get("method", "sft"), spec.get("model_type", "lora")]
    return spec


def _decide_kind(
    spec: dict[str, Any], switches: dict[str, Any], places: dict[str, str], problems: list[FieldProblem]
) -> None:
    if switches["use_lora"] is not None or switches["full_finetuning"] is not None:
        whole = switches["full_finetuning"] is True or switches["use_lora"] is False
        name = "full_finetuning" if switches["full_finetuning"] is not None else "use_lora"
        if spec.setdefault("model_type", "full" if whole else "lora") != ("full" if whole else "lora"):
            message = f"it contradicts model_type {spec['model_type']}"
            problems.append(problem(places[name], "conflict", message, "Keep one of the two."))
    whole = spec.get("model_type") == "full"
    if spec.get("merge_and_save") and whole:
        message = "a fully trained model has no adapter to merge"
        problems.append(problem(places["merge_and_save"], "conflict", message, "Remove it; the model is whole."))
    if spec.get("packing") and spec.get("method") == "dpo":
        problems.append(problem(places["packing"], "conflict", "pairs are not packed", "Set packing to false."))


def _decide_precision(
    spec: dict[str, Any], switches: dict[str, Any], places: dict[str, str], problems: list[FieldProblem]
) -> None:
    wanted = {name: switches[name] for name in ("bf16", "fp16") if switches[name] is not None}
    if all(wanted.get(name) for name in ("bf16", "fp16")):
        problems.append(problem(places["fp16"], "conflict", "bf16 and fp16 are both on", "Keep one of them."))
    chosen = next((name for name, on in wanted.items() if on), "no" if wanted else None)
    if chosen is not None:
        spec.setdefault("mixed_precision", chosen)
    bits = {4: "4bit", 8: "8bit"}.get(switches["quantization_bits"])
    asked = {name: word for name, word in (
        ("quantization", spec.get("quantization")), ("quantization_bits", bits),
        ("load_in_4bit", "4bit" if switches["load_in_4bit"] else None),
        ("load_in_8bit", "8bit" if switches["load_in_8bit"] else None),
    ) if word and word != "none"}  # fmt: skip
    if len(set(asked.values())) > 1:
        place = places[list(asked)[-1]]
        problems.append(problem(place, "conflict", "4 and 8 bit are both on", "Keep one of them."))
    if asked or switches["quantized"]:
        spec["quantization"] = next(iter(asked.values()), "4bit")
    if switches["quantized"] is False:
        spec["quantization"] = "none"
    if spec.get("quantization", "none") != "none":
        place = places[next(iter(asked), "quantized")]
        if spec.get("model_type") == "full":
            problems.append(problem(place, "conflict", "a quantised model cannot be trained whole", "Train a LoRA."))
        if spec.get("merge_and_save"):
            message = "an adapter cannot be merged into a quantised model"
            problems.append(problem(places["merge_and_save"], "conflict", message, "Merge it later, without."))


def _decide_intervals(
    spec: dict[str, Any], switches: dict[str, Any], places: dict[str, str], problems: list[FieldProblem]
) -> None:
    """Held-out rows are looked at in one rhythm: every epoch, or every N steps."""
    rhythms = _rhythms(spec, switches)
    if len(set(rhythms.values())) > 1:
        said = " and ".join(f"{places[name]} {value}" for name, value in rhythms.items())
        message = f"evaluation and predictions run together, but {said} differ"
        problems.append(problem(places[next(iter(rhythms))], "conflict", message, "Give one rhythm for both."))
    rhythm = next(iter(rhythms.values()), None)
    if rhythm == "epoch":
        spec["validate_each_epoch"] = True
    elif rhythm is not None:
        spec["validation_step_interval"] = rhythm
    if switches["eval_enabled"] is False or switches["eval_strategy"] == "no":
        spec["eval_split"] = 0.0
    if switches["save_strategy"] == "epoch":
        spec["save_each_epoch"] = True


def _rhythms(spec: dict[str, Any], switches: dict[str, Any]) -> dict[str, object]:
    """What was said about when to look, by name: `epoch` or a number of steps."""
    frequency, steps = switches["prediction_frequency"], switches["prediction_steps"]
    said: dict[str, object] = {}
    if frequency == "epoch" or isinstance(frequency, int):
        said["prediction_frequency"] = frequency
    elif steps is not None:
        said["prediction_steps"] = steps
    if switches["eval_strategy"] == "epoch":
        said["eval_strategy"] = "epoch"
    elif "validation_step_interval" in spec:
        said["validation_step_interval"] = spec["validation_step_interval"]
    return said


def _placed(problems: list[FieldProblem], places: dict[str, str]) -> list[FieldProblem]:
    """The same problems, named by the key as submitted."""
    return [msgspec.structs.replace(each, field=places.get(each.field, each.field)) for each in problems]
