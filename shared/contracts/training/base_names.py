"""What the name of a diffusion base model tells: its family, and which base a family's flavour is."""

from shared.contracts.training.families import FAMILIES

FLAVOURS: dict[str, dict[str, str]] = {
    "sd1x": {
        "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "1.4": "CompVis/stable-diffusion-v1-4",
    },
    "sdxl": {"base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"},
    "sd3": {
        "3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
        "3.5-large": "stabilityai/stable-diffusion-3.5-large",
        "3.0-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    },
    "flux": {
        "dev": "black-forest-labs/FLUX.1-dev",
        "schnell": "black-forest-labs/FLUX.1-schnell",
        "krea": "black-forest-labs/FLUX.1-Krea-dev",
    },
}
"""Hub ids by family and flavour."""

WITHOUT_NEGATIVE_PROMPT = frozenset({"flux"})
"""Families whose base is told a guidance and samples in one pass: nothing is steered away from."""

_MARKS = (
    ("flux.2", "flux2"), ("flux2", "flux2"), ("flux", "flux"), ("stable-diffusion-xl", "sdxl"), ("sdxl", "sdxl"),
    ("stable-diffusion-3", "sd3"), ("stable-diffusion-v1", "sd1x"), ("stable-diffusion-1", "sd1x"),
    ("pixart-sigma", "pixart_sigma"), ("auraflow", "auraflow"), ("chroma1", "chroma"), ("lumina-image-2", "lumina2"),
    ("sana_", "sana"), ("z-image", "z_image"), ("qwen-image", "qwen_image"),
)  # fmt: skip


def family_of_base(name: str) -> str | None:
    """The family that a base model's name tells, a hub id such as `owner/FLUX.1-dev` or a folder; else None."""
    for family, facts in FAMILIES.items():
        if name == facts.base or name in FLAVOURS.get(family, {}).values():
            return family
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((family for mark, family in _MARKS if mark in last), None)
