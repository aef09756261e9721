"""RunPod's serverless GPU pools and what they cost when its catalogue cannot be asked.

Source: RunPod's documentation repository of 20 August 2026, serverless pricing, flex workers. The catalogue
(GET /v2/catalog/gpus, `price.serverless`) is the truth wherever the key may read it.
"""

from collections.abc import Iterable

import msgspec

from services.provider_bridge.outbound.vendors.shapes import Object, a_number, a_text, an_object
from shared.contracts.offers import Availability

HOUR_S = 3600
_RANK: tuple[Availability, ...] = ("none", "unknown", "low", "medium", "high")


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One pool; an endpoint's worker runs on any of its GPUs."""

    id: str
    gpu: str
    vram_gb: int
    usd_per_gpu_s: float
    availability: Availability = "unknown"


POOLS: dict[str, Pool] = {
    pool.id: pool
    for pool in (
        Pool(id="AMPERE_16", gpu="A4000 16GB", vram_gb=16, usd_per_gpu_s=0.00016),
        Pool(id="AMPERE_24", gpu="L4/A5000/RTX 3090 24GB", vram_gb=24, usd_per_gpu_s=0.00019),
        Pool(id="ADA_24", gpu="RTX 4090 24GB", vram_gb=24, usd_per_gpu_s=0.00031),
        Pool(id="AMPERE_48", gpu="A6000/A40 48GB", vram_gb=48, usd_per_gpu_s=0.00034),
        Pool(id="ADA_48_PRO", gpu="L40/L40S/RTX 6000 Ada 48GB", vram_gb=48, usd_per_gpu_s=0.00053),
        Pool(id="AMPERE_80", gpu="A100 80GB", vram_gb=80, usd_per_gpu_s=0.00076),
        Pool(id="ADA_80_PRO", gpu="H100 80GB", vram_gb=80, usd_per_gpu_s=0.00116),
        Pool(id="HOPPER_141", gpu="H200 141GB", vram_gb=141, usd_per_gpu_s=0.00155),
    )
}


def pool_in_catalogue(pool_id: str, gpus: Iterable[Object]) -> Pool:
    """The pool with the highest price and the best availability among its GPUs; what is missing is the table's."""
    known = POOLS.get(pool_id) or Pool(id=pool_id, gpu=pool_id, vram_gb=0, usd_per_gpu_s=0.0)
    prices: list[float] = []
    free: list[Availability] = []
    for gpu in gpus:
        if a_text(gpu.get("pool")) != pool_id:
            continue
        price = a_number(an_object(gpu.get("price")).get("serverless"))
        if price:
            prices.append(price / HOUR_S)
        word = a_text(gpu.get("availability")).lower()
        free.extend(each for each in _RANK if each == word)
    return msgspec.structs.replace(
        known,
        usd_per_gpu_s=max(prices, default=known.usd_per_gpu_s),
        availability=max(free, key=_RANK.index, default=known.availability),
    )
