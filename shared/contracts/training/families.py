"""The diffusion model families this build trains, and what a config of each means where it says nothing."""

from typing import Any, Literal

import msgspec

from shared.contracts.training.problems import FieldProblem, problem

DiffusionFamily = Literal[
    "sd1x", "sdxl", "sd3", "flux", "flux2", "pixart_sigma", "auraflow", "chroma", "lumina2", "sana", "z_image",
    "qwen_image",
]  # fmt: skip
FAMILY_ALIASES = {"pixart": "pixart_sigma"}


class FamilyDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """`base` is a hub id in diffusers layout; `flow` tells flow matching from a schedule of noise steps."""

    base: str
    flow: bool = True
    resolution: float = 1024
    text_length: int
    guidance: float
    flow_shift: float = 3.0


_of = FamilyDefaults
FAMILIES: dict[str, FamilyDefaults] = {
    "sd1x": _of(
        base="stable-diffusion-v1-5/stable-diffusion-v1-5", flow=False, resolution=512, text_length=77, guidance=7.5
    ),
    "sdxl": _of(base="stabilityai/stable-diffusion-xl-base-1.0", flow=False, text_length=77, guidance=5.0),
    "sd3": _of(base="stabilityai/stable-diffusion-3.5-medium", text_length=256, guidance=4.5),
    "flux": _of(base="black-forest-labs/FLUX.1-dev", text_length=512, guidance=3.5),
    "flux2": _of(base="black-forest-labs/FLUX.2-klein-base-4B", text_length=512, guidance=4.0),
    "pixart_sigma": _of(base="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", flow=False, text_length=300, guidance=4.5),
    "auraflow": _of(base="fal/AuraFlow-v0.3", text_length=256, guidance=3.5, flow_shift=1.73),
    "chroma": _of(base="lodestones/Chroma1-HD", text_length=512, guidance=4.0),
    "lumina2": _of(base="Alpha-VLLM/Lumina-Image-2.0", text_length=256, guidance=4.0, flow_shift=6.0),
    "sana": _of(base="Efficient-Large-Model/Sana_1600M_1024px_diffusers", text_length=300, guidance=4.5),
    "z_image": _of(base="Tongyi-MAI/Z-Image", text_length=512, guidance=5.0),
    "qwen_image": _of(base="Qwen/Qwen-Image", text_length=1024, guidance=4.0),
}

_FLOW_ONLY = frozenset(
    """
    flow_schedule_shift flow_schedule_auto_shift flow_sigmoid_scale flow_use_uniform_schedule flow_use_beta_schedule
    flow_beta_schedule_alpha flow_beta_schedule_beta flow_custom_timesteps
    """.split()  # noqa: SIM905 -- a word list reads better
)
_SCHEDULE_ONLY = frozenset(
    """
    snr_gamma rescale_betas_zero_snr timestep_bias_strategy timestep_bias_begin timestep_bias_end
    timestep_bias_multiplier timestep_bias_portion
    """.split()  # noqa: SIM905 -- a word list reads better
)


def family_defaults(name: str | None) -> dict[str, Any]:
    """The fields of a `DiffusionSpec` that a family sets; nothing for a family nobody knows."""
    family = FAMILIES.get(name or "")
    if family is None:
        return {}
    return {
        "pretrained_model_name_or_path": family.base,
        "resolution": family.resolution,
        "tokenizer_max_length": family.text_length,
        "validation_guidance": family.guidance,
        "flow_schedule_shift": family.flow_shift,
    }


def objective_problems(checked: dict[str, Any]) -> list[FieldProblem]:
    """Keys of the other way to train: those of flow matching for noise predictors, and the other way round."""
    name = checked.get("model_family")
    family = FAMILIES.get(name or "")
    if family is None:
        return []
    kind = "flow matching" if family.flow else "a schedule of noise steps"
    foreign = _SCHEDULE_ONLY if family.flow else _FLOW_ONLY
    problems = [
        problem(key, "conflict", f"{key} has no meaning: {name} is trained with {kind}", "Remove the key.")
        for key in sorted(foreign & checked.keys())
        if checked[key] not in (False, "none")
    ]
    kinds = ["flow_matching"] if family.flow else ["epsilon", "v_prediction"]
    if checked.get("prediction_type", kinds[0]) not in kinds:
        message = f"{name} is trained with {kind}"
        problems.append(problem("prediction_type", "conflict", message, f"Use {' or '.join(kinds)}."))
    if checked.get("rescale_betas_zero_snr") and checked.get("prediction_type") == "epsilon":
        message = "a base that predicts noise has nothing to learn at zero signal"
        advice = "Set prediction_type to v_prediction, or leave rescale_betas_zero_snr off."
        problems.append(problem("rescale_betas_zero_snr", "conflict", message, advice))
    return problems
