"""RunPod's GPUs: by the names that people and other documents use, as profiles of a pod, and as offers."""

import re
from collections.abc import Iterable
from typing import Literal, Self, cast

import msgspec

from services.provider_bridge.outbound.ports import StartRefused
from shared.contracts.offers import Availability, Offer

Cloud = Literal["SECURE", "COMMUNITY"]

COUNTS = (1, 2, 4, 8)
"""GPUs of one pod that are offered; any other count up to the GPU's most can be asked for by name."""

IDS = {
    "RTX 4090": "NVIDIA GeForce RTX 4090",
    "RTX 5090": "NVIDIA GeForce RTX 5090",
    "RTX 3090": "NVIDIA GeForce RTX 3090",
    "RTX A4000": "NVIDIA RTX A4000",
    "RTX A5000": "NVIDIA RTX A5000",
    "RTX A6000": "NVIDIA RTX A6000",
    "A40": "NVIDIA A40",
    "L4": "NVIDIA L4",
    "L40": "NVIDIA L40",
    "L40S": "NVIDIA L40S",
    "A100": "NVIDIA A100 80GB PCIe",
    "A100 40GB": "NVIDIA A100-SXM4-40GB",
    "A100 80GB": "NVIDIA A100 80GB PCIe",
    "A100 PCIE": "NVIDIA A100 80GB PCIe",
    "A100 SXM": "NVIDIA A100-SXM4-80GB",
    "H100": "NVIDIA H100 80GB HBM3",
    "H100 80GB": "NVIDIA H100 80GB HBM3",
    "H100 SXM": "NVIDIA H100 80GB HBM3",
    "H100 PCIE": "NVIDIA H100 PCIe",
    "H100 NVL": "NVIDIA H100 NVL",
    "H200": "NVIDIA H200",
    "B200": "NVIDIA B200",
}
"""What people say -> the display id that RunPod's create wants (its GPU table of 2026)."""

_PROFILE = re.compile(r"(?P<gpu>.+?)(?: x(?P<count>[1-9][0-9]?))?(?: (?P<cloud>SECURE|COMMUNITY))?")
_LEVELS: dict[str, Availability] = {"NONE": "none", "LOW": "low", "MEDIUM": "medium", "HIGH": "high"}


def gpu_id(name: str) -> str:
    """RunPod's id of a GPU by any of its names (`RTX 4090`, `NVIDIA_RTX_A4000`, `h100`); unknown ones as they are."""
    words = re.sub(r"[\s_-]+", " ", name.strip()).upper().removeprefix("NVIDIA ").removeprefix("GEFORCE ")
    return IDS.get(re.sub(r"(?<=[0-9]) GB\b", "GB", words), name.strip())


class Profile(msgspec.Struct, frozen=True):
    """What a pod is put on. Its text is an offer's `hardware`: the GPU's id, ` x2` for two, ` COMMUNITY`."""

    gpu: str
    count: int = 1
    cloud: Cloud = "SECURE"

    @classmethod
    def parse(cls, hardware: str) -> Self:
        """The profile of an offer's `hardware`. Raises StartRefused for an empty one."""
        found = _PROFILE.fullmatch(hardware.strip())
        if found is None:
            raise StartRefused("No GPU is named.", "Name one of RunPod's GPUs, such as `NVIDIA GeForce RTX 4090`.")
        return cls(gpu_id(found["gpu"]), int(found["count"] or 1), cast("Cloud", found["cloud"] or "SECURE"))

    def __str__(self) -> str:
        count = f" x{self.count}" if self.count > 1 else ""
        return f"{self.gpu}{count}{' COMMUNITY' if self.cloud == 'COMMUNITY' else ''}"


class CentreShown(msgspec.Struct):
    """A data centre that has the GPU."""

    id: str
    availability: str = ""


class PriceShown(msgspec.Struct):
    """USD for one GPU and hour."""

    secure: float | None = None
    community: float | None = None


class MostShown(msgspec.Struct):
    """GPUs of the largest machine."""

    secure: int | None = None
    community: int | None = None


class GpuShown(msgspec.Struct, rename="camel"):
    """One GPU of the catalogue."""

    id: str
    name: str = ""
    memory: int = 0
    price: PriceShown = msgspec.field(default_factory=PriceShown)
    max_count: MostShown = msgspec.field(default_factory=MostShown)
    availability: str = ""
    data_centers: list[CentreShown] = msgspec.field(default_factory=list[CentreShown])


class CatalogueShown(msgspec.Struct):
    """The answer of `/v2/catalog/gpus`."""

    gpus: list[GpuShown]


def offers(provider: str, shown: Iterable[GpuShown], cloud: Cloud) -> list[Offer]:
    """One offer for each count and each data centre that has some; one without a region where none is named.

    The catalogue's availability is that of one GPU: of more it is not known.
    """
    return [
        Offer(
            provider=provider,
            hardware=str(Profile(gpu.id, count, cloud)),
            gpu=_called(gpu),
            gpu_count=count,
            vram_gb=gpu.memory,
            price_micro_usd_per_hour=round(price_usd * count * 1_000_000),
            region=region,
            availability="unknown" if count > 1 and level != "none" else level,
        )
        for gpu in shown
        for price_usd, most in [_terms(gpu, cloud)]
        if price_usd is not None
        for count in COUNTS
        if count <= most
        for region, level in _places(gpu)
    ]


def _terms(gpu: GpuShown, cloud: Cloud) -> tuple[float | None, int]:
    """Price of one and the most of them; no price where the GPU is not to be had at all."""
    secure = cloud == "SECURE"
    price_usd = gpu.price.secure if secure else gpu.price.community
    most = gpu.max_count.secure if secure else gpu.max_count.community
    return price_usd or None, most or 0


def _places(gpu: GpuShown) -> list[tuple[str | None, Availability]]:
    some: list[tuple[str | None, Availability]] = [
        (centre.id, _LEVELS.get(centre.availability, "unknown"))
        for centre in gpu.data_centers
        if centre.availability != "NONE"
    ]
    return some or [(None, _LEVELS.get(gpu.availability, "unknown"))]


def _called(gpu: GpuShown) -> str:
    name = gpu.name or gpu.id
    return name if not gpu.memory or "GB" in name else f"{name} {gpu.memory}GB"
