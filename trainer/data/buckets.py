"""Which size a picture is trained at: pure arithmetic on header sizes, so the plan needs no decoding."""

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
    """The settings that decide a placement. `edge` is in the unit of `edge_type`; `alignment` in pixels."""

    edge: float
    edge_type: str
    rounding: int
    alignment: int
    square: bool
    corner: bool


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
        square=dataset.crop and dataset.crop_aspect == "square",
        corner=dataset.crop_style == "corner",
    )


def place(width: int, height: int, rule: BucketRule) -> Placement:
    """The placement of a picture whose upright size is (width, height) pixels."""
    aspect = 1.0 if rule.square else max(round(width / height, rule.rounding), 10**-rule.rounding)
    size = _bucket_size(aspect, rule)
    scale = max(size[0] / width, size[1] / height)
    resized = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    spare = resized[0] - size[0], resized[1] - size[1]
    offset = (0, 0) if rule.corner else (spare[0] // 2, spare[1] // 2)
    return Placement(size=size, resized=resized, offset=offset)


def _bucket_size(aspect: float, rule: BucketRule) -> tuple[int, int]:
    if rule.edge_type == "pixel":
        short = _aligned(rule.edge, rule.alignment)
        return (_aligned(short * aspect, rule.alignment), short) if aspect >= 1 else (
            short, _aligned(short / aspect, rule.alignment))  # fmt: skip
    area = rule.edge * _PIXELS_PER_MEGAPIXEL if rule.edge_type == "area" else rule.edge**2
    edge = _aligned(area**0.5, rule.alignment)
    return _aligned(edge * aspect**0.5, rule.alignment), _aligned(edge / aspect**0.5, rule.alignment)


def _aligned(length: float, alignment: int) -> int:
    """The nearest multiple of `alignment`, halves up, at least one."""
    return max(int(length / alignment + 0.5), 1) * alignment
