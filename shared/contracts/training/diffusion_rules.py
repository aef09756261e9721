"""Rules between diffusion keys: what depends on the family, on the model type, or on another key."""

from typing import Any

from shared.contracts.training.base_names import WITHOUT_NEGATIVE_PROMPT
from shared.contracts.training.families import objective_problems
from shared.contracts.training.problems import FieldProblem, problem
from shared.contracts.training.values import shown

FLUX_KEYS: dict[str, str] = {
    "flux_lora_target": "Use peft_lora_target_modules, a list of layer names or all-linear.",
    "flux_guidance_value": "Only FLUX.1 is told a guidance while it trains; remove it.",
}
"""Keys that mean something for FLUX.1 alone, and what to do elsewhere."""

OTHER_OPTIMIZERS: dict[str, str] = {
    **dict.fromkeys(
        ("ao-adamw8bit", "ao-adamw4bit", "ao-adamfp8", "ao-adamwfp8", "bnb-adam8bit", "sdnq-adamw"), "bnb-adamw8bit"
    ),
    **dict.fromkeys(("bnb-adamw-paged", "adamw_schedulefree", "optimi-stableadamw", "stableadamw"), "adamw"),
    **dict.fromkeys(("adamw_schedulefree+aggressive", "adamw_schedulefree+no_kahan"), "adamw"),
    **dict.fromkeys(("optimi-radam", "optimi-ranger", "optimi-adan", "torch-radam", "torch-nadam"), "adamw"),
    **dict.fromkeys(("torch-adamax", "torch-sparseadam", "bnb-ademamix", "bnb-ademamix-paged"), "adamw"),
    **dict.fromkeys(("bnb-ademamix8bit", "bnb-ademamix8bit-paged"), "bnb-adamw8bit"),
    **dict.fromkeys(("bnb-lion-paged", "sdnq-lion"), "lion"),
    **dict.fromkeys(("sdnq-adafactor", "bnb-adagrad", "bnb-adagrad8bit", "torch-adagrad"), "adafactor"),
    **dict.fromkeys(("torch-sgd", "optimi-sgd", "torch-asgd", "torch-rmsprop", "torch-adadelta"), "adamw"),
    **dict.fromkeys(("soap", "muon", "sdnq-muon", "came", "sdnq-came"), "adafactor"),
    **dict.fromkeys(("dadaptation", "dadaptadam", "dadaptlion", "dadaptsgd"), "prodigy"),
}
"""Known optimizers that are not built, each with the nearest that is."""

OTHER_PRECISIONS: dict[str, str] = {
    **dict.fromkeys(("int8-quanto", "int8-bnb", "int8"), "int8-torchao"),
    **dict.fromkeys(("fp8-torchao", "fp8-quanto", "fp8uz-quanto", "fp8"), "fp8wo-torchao"),
    **dict.fromkeys(("int4-quanto", "int2-quanto", "int4-torchao", "fp4-bnb", "nf4"), "nf4-bnb"),
}
"""Known precisions of the base that are not built, each with the nearest that is."""

_OF_AN_ADAPTER = frozenset(
    """
    lora_rank lora_alpha lora_dropout lora_init_type use_dora init_lora peft_lora_target_modules flux_lora_target
    """.split()  # noqa: SIM905 -- a word list reads better
)
_OFF = (None, False, "none", "l2")
DEPENDENT: dict[str, str] = {
    "huber_c": "loss_type",
    "huber_schedule": "loss_type",
    "noise_offset": "offset_noise",
    "noise_offset_probability": "offset_noise",
    "timestep_bias_begin": "timestep_bias_strategy",
    "timestep_bias_end": "timestep_bias_strategy",
    "timestep_bias_multiplier": "timestep_bias_strategy",
    "timestep_bias_portion": "timestep_bias_strategy",
    "flow_beta_schedule_alpha": "flow_use_beta_schedule",
    "flow_beta_schedule_beta": "flow_use_beta_schedule",
    "ema_decay": "use_ema",
    "ema_update_interval": "use_ema",
    "ema_warmup_steps": "use_ema",
    "ema_validation": "use_ema",
    "gradient_checkpointing_interval": "gradient_checkpointing",
}
"""Keys that are read only when another is not at its default."""


def family_problems(checked: dict[str, Any], defaults: dict[str, Any], family: str) -> list[FieldProblem]:
    """One problem for each key that this family cannot be trained with, unless it says what happens anyway."""
    found = objective_problems(checked)
    for name, advice in FLUX_KEYS.items():
        if family != "flux" and checked.get(name, defaults[name]) != defaults[name]:
            message = f"{name}={shown(checked[name])} has no meaning for {family}"
            found.append(problem(name, "unsupported", message, advice))
    return found


def conflict_problems(checked: dict[str, Any]) -> list[FieldProblem]:
    """Keys that each make sense, but not together."""
    found: list[FieldProblem] = []

    def add(name: str, message: str, advice: str) -> None:
        found.append(problem(name, "conflict", message, advice))

    full = checked.get("model_type") == "full"
    if full and checked.get("base_model_precision", "no_change") != "no_change":
        add("base_model_precision", "a quantised base cannot learn", "Use model_type lora, or no_change.")
    if checked.get("rescale_betas_zero_snr") and checked.get("prediction_type") != "v_prediction":
        add(
            "rescale_betas_zero_snr", "at zero signal there is no noise to predict", "Set prediction_type v_prediction."
        )
    if checked.get("use_dora") and checked.get("base_model_precision") in {"int8-torchao", "fp8wo-torchao"}:
        add("use_dora", "DoRA reads the base's weights, which torchao keeps packed", "Use nf4-bnb, or switch one off.")
    schedules = [name for name in ("flow_use_uniform_schedule", "flow_use_beta_schedule") if checked.get(name)]
    if checked.get("flow_custom_timesteps"):
        schedules.append("flow_custom_timesteps")
    if len(schedules) > 1:
        add(schedules[1], f"{' and '.join(schedules)} exclude each other", "Keep one of them.")
    if checked.get("timestep_bias_begin", 0) >= checked.get("timestep_bias_end", 1000):
        add("timestep_bias_begin", "it is not before timestep_bias_end", "Give a range of steps in 0 to 1000.")
    if checked.get("resume_from_checkpoint", "latest") not in (None, "latest"):
        advice = "Use latest: a job goes on from its own newest checkpoint, on whichever machine."
        add("resume_from_checkpoint", "a checkpoint of another run cannot be named here", advice)
    return found


def without_effect(checked: dict[str, Any], defaults: dict[str, Any], family: str) -> set[str]:
    """Which of the given keys change nothing together with the others: reported, so that nobody waits for an effect."""
    idle = {name for name, switch in DEPENDENT.items() if checked.get(switch, defaults[switch]) in _OFF}
    if checked.get("model_type") == "full":
        idle |= _OF_AN_ADAPTER
    if family in WITHOUT_NEGATIVE_PROMPT:
        idle.add("validation_negative_prompt")
    return idle & checked.keys()
