"""What a submitted body asks of the machine, as the scheduler takes it. Pure."""

import msgspec

from services.gateway.domain.refusals import invalid
from shared.contracts.offers import AUTO, PROVIDERS, HardwareRequest

MICRO = 1_000_000


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each member narrows the choice of machines; what is left out does not.

    `hardware` is a profile (`h100-x2`) or the provider's own id; `gpu` a pattern such as `*A100*`, in any case.
    `providers` is for provider `auto`, `labels` for own workers (values may hold `*`).
    """

    hardware: str | None = None
    gpu: str | None = None
    gpu_count: int = 1
    min_vram_gb: int | None = None
    """Of each GPU."""
    max_price_usd_per_hour: float | None = None
    """Of the whole machine."""
    regions: list[str] = []
    allow_spot: bool = False
    """Whether the provider may take the machine away; the job then goes on elsewhere from its last checkpoint."""
    providers: list[str] = []
    labels: dict[str, str] = {}
    max_run_s: int | None = None
    """Each attempt is ended after so many seconds; the job goes on from its last checkpoint."""


def hardware_request(profile: str | None, asked: Requirements | None, provider: str) -> HardwareRequest | None:
    """Both ways of asking as one; None when nothing is asked. Refuses what no machine could be."""
    if asked is None:
        return None if profile is None else HardwareRequest(hardware=profile)
    if profile is not None and asked.hardware not in {None, profile}:
        raise invalid("hardware_profile", "requirements.hardware says another one", "Send it once.")
    for name, value in (
        ("gpu_count", asked.gpu_count),
        ("min_vram_gb", asked.min_vram_gb),
        ("max_price_usd_per_hour", asked.max_price_usd_per_hour),
        ("max_run_s", asked.max_run_s),
    ):
        if value is not None and value <= 0:
            raise invalid(
                f"requirements.{name}", f"it must be more than 0, not {value}", "Correct it, or leave it out."
            )
    if unknown := [name for name in asked.providers if name not in PROVIDERS]:
        raise invalid("requirements.providers", f"there is no provider {unknown[0][:64]!r}", f"{', '.join(PROVIDERS)}.")
    if asked.providers and provider != AUTO:
        raise invalid("requirements.providers", "it is for provider auto", f"Submit with ?provider={AUTO}.")
    price = asked.max_price_usd_per_hour
    return HardwareRequest(
        hardware=profile or asked.hardware,
        gpu=asked.gpu,
        gpu_count=asked.gpu_count,
        min_vram_gb=asked.min_vram_gb,
        max_price_micro_usd_per_hour=None if price is None else round(price * MICRO),
        regions=asked.regions,
        allow_spot=asked.allow_spot,
        providers=asked.providers,
        labels=asked.labels,
        max_run_s=asked.max_run_s,
    )
