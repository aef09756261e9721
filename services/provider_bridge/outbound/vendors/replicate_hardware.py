"""Replicate's hardware and what it costs. Replicate's API lists hardware without prices, so they stand here.

Source: an undated copy of the page replicate.com/pricing, read on 21 November 2026; its T4, A100, L40S and H100 figures
were repeated by third parties in May 2026. A price that has changed since is set by `prices_usd_per_s`.
"""

from collections.abc import Mapping

import msgspec

from shared.contracts.offers import Availability, Offer

_MICRO = 1_000_000
_HOUR_S = 3600


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One SKU: `profile` is what configs and the brief call it."""

    sku: str
    profile: str
    gpu: str
    gpu_count: int
    vram_gb: int
    usd_per_s: float

    def offer(self, provider: str, prices_usd_per_s: Mapping[str, float], availability: Availability) -> Offer:
        """As an offer, at the operator's price if there is one."""
        return Offer(
            provider=provider,
            hardware=self.sku,
            gpu=self.gpu,
            gpu_count=self.gpu_count,
            vram_gb=self.vram_gb,
            price_micro_usd_per_hour=round(prices_usd_per_s.get(self.sku, self.usd_per_s) * _HOUR_S * _MICRO),
            availability=availability,
        )


def _family(name: str, gpu: str, vram_gb: int, usd_per_s: float, skus: Mapping[int, str]) -> list[Hardware]:
    return [
        Hardware(
            sku=sku,
            profile=name if count == 1 else f"{name}-x{count}",
            gpu=gpu,
            gpu_count=count,
            vram_gb=vram_gb,
            usd_per_s=round(usd_per_s * count, 6),
        )
        for count, sku in skus.items()
    ]


HARDWARE: tuple[Hardware, ...] = (
    *_family(
        "h100",
        "H100 80GB",
        80,
        0.001525,
        {1: "gpu-h100", 2: "gpu-h100-2x", 4: "gpu-h100-4x", 8: "gpu-h100-8x"},
    ),
    *_family(
        "l40s",
        "L40S 48GB",
        48,
        0.000975,
        {1: "gpu-l40s", 2: "gpu-2x-l40s", 4: "gpu-4x-l40s", 8: "gpu-8x-l40s"},
    ),
    *_family(
        "a100",
        "A100 80GB",
        80,
        0.0014,
        {1: "gpu-a100-large", 2: "gpu-a100-large-2x", 4: "gpu-a100-large-4x", 8: "gpu-a100-large-8x"},
    ),
    *_family("a40-large", "A40 48GB", 48, 0.000725, {1: "gpu-a40-large"}),
    *_family("a40-small", "A40 48GB", 48, 0.000575, {1: "gpu-a40-small"}),
    *_family("t4", "T4 16GB", 16, 0.000225, {1: "gpu-t4"}),
    Hardware(sku="cpu", profile="cpu", gpu="", gpu_count=0, vram_gb=0, usd_per_s=0.0001),
)
"""In dollars per second; several GPUs are taken to cost as much as that many single ones."""


def hardware_of(name: str) -> Hardware | None:
    """By SKU (`gpu-h100-2x`) or by profile (`h100-x2`)."""
    return next((each for each in HARDWARE if name in {each.sku, each.profile}), None)
