"""This machine as an offer."""

from shared.contracts.offers import Offer
from shared.runs.hardware import gpus


async def offer(provider: str, hardware: str) -> Offer:
    """The machine without a price; one without a GPU, or with a broken driver, offers none."""
    found = await gpus()
    return Offer(
        provider=provider,
        hardware=hardware,
        gpu=found[0].name if found else "",
        gpu_count=len(found),
        vram_gb=min((gpu.vram_gb for gpu in found if gpu.vram_gb), default=0),
        price_micro_usd_per_hour=0,
        availability="high",
    )
