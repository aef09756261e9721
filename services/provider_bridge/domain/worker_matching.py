"""Which workers a run may go to: what they have, read leniently from what they say, against what is asked."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast
from uuid import UUID

import msgspec

from services.provider_bridge.domain.worker import Worker
from shared.contracts.offers import Offer

PROVIDER = "worker"
ANY = "any worker"
"""What a run is on when nobody chose a worker."""
_NAMES = ("name", "gpu_name", "device_name", "gpu", "model")
_COUNTS = ("count", "gpu_count", "num_gpus", "device_count")
_MEMORIES_GB = ("vram_gb", "memory_gb", "vram_total_gb", "total_memory_gb")


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker computes on; no name and no count without a GPU."""

    name: str = ""
    count: int = 0
    vram_gb: int = 0
    """Of each GPU; 0 = not known."""


def gpus_of(gpu_info: Mapping[str, Any]) -> Gpus:
    """What `gpu_info` says, however it says it: a list of `gpus`, or one that stands for all of them."""
    listed = [cast("dict[str, Any]", one) for one in _listed(gpu_info.get("gpus")) if isinstance(one, dict)]
    if listed:
        memories = [memory for one in listed if (memory := _number(one, _MEMORIES_GB))]
        return Gpus(name=_text(listed[0], _NAMES), count=len(listed), vram_gb=min(memories, default=0))
    name = _text(gpu_info, _NAMES)
    count = _number(gpu_info, _COUNTS)
    if count is None:  # a name without a number is one GPU
        count = 0 if not name or name.upper() == "CPU" else 1
    if count == 0:
        return Gpus()
    return Gpus(name=name, count=count, vram_gb=_number(gpu_info, _MEMORIES_GB) or 0)


def offer_of(worker_id: UUID, worker: Worker, *, is_free: bool) -> Offer:
    """The worker as a machine that can be had, now or when it is free."""
    gpus = gpus_of(worker.registered.gpu_info if worker.registered else {})
    return Offer(
        provider=PROVIDER,
        hardware=str(worker_id),
        gpu=gpus.name,
        gpu_count=gpus.count,
        vram_gb=gpus.vram_gb,
        price_micro_usd_per_hour=worker.price_micro_usd_per_hour,
        availability="high" if is_free else "none",
        labels=worker.labels,
    )


def labels_match(asked: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Every label asked for is there, and its value fits; a value may hold `*` and `?`."""
    return all(name in labels and fnmatchcase(labels[name], value) for name, value in asked.items())


def suits(offer: Offer, asked: Offer | None) -> bool:
    """Whether this worker's offer is, or is as good as, what was chosen.

    `asked.hardware` names the worker by its id, or asks by labels (`site=lab,gpu=a*`), or is any worker's. What it says
    of the GPU are the least that is wanted, and its price the most that is paid.
    """
    if asked is None:
        return True
    if _is_id(asked.hardware):
        return asked.hardware == offer.hardware
    wanted = labels_in(asked.hardware) | asked.labels
    return (
        labels_match(wanted, offer.labels)
        and (not asked.gpu or fnmatchcase(offer.gpu.lower(), asked.gpu.lower()))
        and offer.gpu_count >= asked.gpu_count
        and (offer.vram_gb >= asked.vram_gb or offer.gpu_count == 0 == asked.gpu_count)
        and offer.price_micro_usd_per_hour <= asked.price_micro_usd_per_hour
    )


def best_first(offers: Iterable[Offer]) -> list[Offer]:
    """The cheapest first, then the smallest that does, then in the order of their ids."""
    return sorted(offers, key=lambda one: (one.price_micro_usd_per_hour, one.gpu_count, one.vram_gb, one.hardware))


def labels_in(text: str) -> dict[str, str]:
    """`site=lab,gpu=a*` as labels; a text without `=` asks for none."""
    pairs = [part.partition("=") for part in text.split(",") if "=" in part]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text(info: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((str(info[name]) for name in names if isinstance(info.get(name), str)), "")


def _number(info: Mapping[str, Any], names: Iterable[str]) -> int | None:
    found = next((info[name] for name in names if isinstance(info.get(name), int | float)), None)
    return None if found is None else max(0, round(min(found, 1e6)))
