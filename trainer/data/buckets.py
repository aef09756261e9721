"""Which size a picture is trained at: pure arithmetic on header sizes, so the plan needs no decoding."""

import random
from dataclasses import dataclass

from shared.contracts.training.datasets import DatasetSpec
from shared.contracts.training.diffusion import DiffusionSpec

_PIXELS_PER_MEGAPIXEL = 1_000_000


@dataclass(frozen=True)
class Placement:
    """Resize to `resized` (covers the target), then crop `size` at `offset`; all (width, height) in pixels."""

    size: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True)
class BucketRule:
    """The settings that decide a placement. Lengths are in the unit of `edge_type`; `alignment` in pixels.

    `aspect` is preserve, square, closest or random; the last two choose from `aspects`. `style` is center, corner or
    random. Pictures larger than `largest` are first made `downsampled` large, so that the crop is a part of them.
    """

    edge: float
    edge_type: str
    rounding: int
    alignment: int
    aspect: str = "preserve"
    aspects: tuple[float, ...] = ()
    upscale: float | None = None
    style: str = "center"
    largest: float | None = None
    downsampled: float | None = None
    seed: int = 0


def rule_for(training: DiffusionSpec, dataset: DatasetSpec, side_multiple: int) -> BucketRule:
    """Dataset settings win over the config's; the alignment is raised to what the base model needs."""
    alignment = training.aspect_bucket_alignment
    while alignment % side_multiple:
        alignment += 1
    return BucketRule(
        edge=dataset.resolution if dataset.resolution is not None else training.resolution,
        edge_type=dataset.resolution_type or training.resolution_type,
        rounding=training.aspect_bucket_rounding,
        alignment=alignment,
        aspect=dataset.crop_aspect if dataset.crop else "preserve",
        aspects=tuple(dataset.crop_aspect_buckets or ()),
        upscale=dataset.max_upscale_threshold,
        style=dataset.crop_style if dataset.crop else "center",
        largest=dataset.maximum_image_size,
        downsampled=dataset.target_downsample_size,
        seed=training.seed,
    )


def place(width: int, height: int, rule: BucketRule, picture: str = "") -> Placement | None:
    """The placement of a picture whose upright size is (width, height) pixels.

    Chance is drawn from the seed and `picture`, its identity, alone. None when every allowed aspect would enlarge the
    picture beyond `rule.upscale`.
    """
    chance = random.Random(f"{rule.seed}/{picture}")  # noqa: S311 -- repeatable on purpose
    aspect = _aspect(width, height, rule, chance)
    if aspect is None:
        return None
    size = _bucket_size(aspect, rule)
    scale = max(size[0] / width, size[1] / height, _downsampling(width, height, rule))
    resized = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    spare = resized[0] - size[0], resized[1] - size[1]
    if rule.style == "corner":
        offset = (0, 0)
    elif rule.style == "random":
        offset = chance.randint(0, spare[0]), chance.randint(0, spare[1])
    else:
        offset = spare[0] // 2, spare[1] // 2
    return Placement(size=size, resized=resized, offset=offset)


def in_pixels(length: float, edge_type: str) -> float:
    """A length of the settings as the edge in pixels: megapixels are the square of their edge."""
    return (length * _PIXELS_PER_MEGAPIXEL) ** 0.5 if edge_type == "area" else length


def edge_of(width: int, height: int, edge_type: str) -> float:
    """How large a picture counts, in pixels: its shorter side, or the edge of the square of its area."""
    return min(width, height) if edge_type == "pixel" else (width * height) ** 0.5


def _aspect(width: int, height: int, rule: BucketRule, chance: random.Random) -> float | None:
    own = max(round(width / height, rule.rounding), 10**-rule.rounding)
    if rule.aspect == "preserve":
        return own
    if rule.aspect == "square":
        return 1.0
    allowed = [aspect for aspect in rule.aspects if _fits(width, height, _bucket_size(aspect, rule), rule)]
    if not allowed:
        return None
    return chance.choice(allowed) if rule.aspect == "random" else min(allowed, key=lambda each: abs(each - own))


def _fits(width: int, height: int, size: tuple[int, int], rule: BucketRule) -> bool:
    return rule.upscale is None or max(size[0] / width, size[1] / height) <= 1 + rule.upscale


def _downsampling(width: int, height: int, rule: BucketRule) -> float:
    """The scale that brings a picture above `largest` to `downsampled`; 0 for the others."""
    if rule.largest is None or rule.downsampled is None:
        return 0.0
    edge = edge_of(width, height, rule.edge_type)
    if edge <= in_pixels(rule.largest, rule.edge_type):
        return 0.0
    return in_pixels(rule.downsampled, rule.edge_type) / edge


def _bucket_size(aspect: float, rule: BucketRule) -> tuple[int, int]:
    if rule.edge_type == "pixel":
        short = _aligned(rule.edge, rule.alignment)
        return (_aligned(short * aspect, rule.alignment), short) if aspect >= 1 else (
            short, _aligned(short / aspect, rule.alignment))  # fmt: skip
    edge = _aligned(in_pixels(rule.edge, rule.edge_type), rule.alignment)
    return _aligned(edge * aspect**0.5, rule.alignment), _aligned(edge / aspect**0.5, rule.alignment)


def _aligned(length: float, alignment: int) -> int:
    """The nearest multiple of `alignment`, halves up, at least one."""
    return max(int(length / alignment + 0.5), 1) * alignment
