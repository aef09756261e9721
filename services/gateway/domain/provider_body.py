"""Providers, their hardware and their keys in the documented shapes. Pure."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from services.gateway.domain.job_body import MICRO, iso
from shared.contracts.offers import Offer
from shared.contracts.provider import CredentialView, NetworkView, ProviderView

HOUR_S = 3600
DEFAULT_HARDWARE = "gpu-l40s"


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that a provider has. `id` and `hardware_type` can be asked for as `hardware_profile` of a job."""

    id: str
    hardware_type: str
    model: str | None
    """What people call the GPU."""
    cost_per_hour: float
    cost_per_second: float
    gpu_count: int
    vram_gb: int
    region: str | None
    spot: bool
    availability: str


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as the documented list has it; beside that, why it is not set up and how its breaker stands."""

    id: str
    name: str
    description: str
    model: str | None
    version: str | None
    hardware: str
    cost_per_hour: float | None
    configured: bool
    coming_soon: bool = False
    hardware_profile: str | None
    hardware_profiles: list[HardwareProfile]
    problems: list[str]
    breaker: str
    suspended: str | None
    capabilities: dict[str, Any]


class ProvidersListResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every provider that Tunewright has an adapter for."""

    providers: list[Provider]


class ProviderConfigResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Settings in force: what was set by API, over the environment's, over defaults. No secret is among them."""

    provider: str
    config: dict[str, Any]
    configured: bool
    problems: list[str]
    credentials: list[dict[str, Any]]
    stored: list[str]
    """Names of the settings that were set by API."""


class AdvancedConfigResponse(msgspec.Struct, frozen=True, kw_only=True):
    """How calls to the provider leave, and who may send its webhooks."""

    ssl_verify: bool
    ssl_ca_bundle: str | None
    proxy_url: str | None
    http_timeout: float
    webhook_ip_allowlist_enabled: bool
    webhook_allowed_ips: list[str]


class HardwareOption(msgspec.Struct, frozen=True, kw_only=True):
    """One machine to choose."""

    id: str
    name: str
    cost_per_second: float
    cost_per_hour: float
    available: bool


class HardwareOptionsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The machines of one provider."""

    hardware: list[HardwareOption]
    default_hardware: str
    message: str | None


class CostEstimateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What a job may cost: the average time of earlier jobs at this provider times the price of the hardware."""

    has_estimate: bool
    estimated_cost_usd: float | None = None
    avg_duration_seconds: float | None = None
    hardware_cost_per_hour: float | None = None
    data_size_mb: float = 0
    message: str | None = None


class CircuitBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """One provider's breaker. `retry_after`: seconds until calls are tried again."""

    name: str
    state: str
    failure_count: int
    success_count: int = 0
    last_failure: str | None = None
    retry_after: float | None = None


class CircuitBreakersResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every provider's breaker."""

    circuit_breakers: list[CircuitBreaker]
    total: int
    error: str | None = None


class CredentialResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key, without itself. When it was last used is not written down."""

    id: int
    provider: str
    credential_name: str
    description: str | None
    created_at: str
    updated_at: str
    last_used_at: None = None
    is_active: bool
    problem: str | None = None


def provider_body(view: ProviderView) -> Provider:
    """One provider of the list."""
    profiles = hardware_profiles(view.offers)
    hardware = str(view.settings.get("hardware") or view.default_hardware)
    chosen = chosen_offer(view.offers, hardware)
    return Provider(
        id=view.name,
        name=view.title,
        description=view.description,
        model=view.settings.get("model") or None,
        version=view.settings.get("version") or view.settings.get("version_override") or None,
        hardware=hardware,
        cost_per_hour=None if chosen is None else _usd(chosen.price_micro_usd_per_hour),
        configured=view.configured,
        hardware_profile=view.settings.get("hardware_profile"),
        hardware_profiles=profiles,
        problems=view.problems,
        breaker=view.breaker.state,
        suspended=None if view.suspended is None else view.suspended.message,
        capabilities=view.capabilities,
    )


def config_body(view: ProviderView) -> ProviderConfigResponse:
    """Settings as they are in force."""
    return ProviderConfigResponse(
        provider=view.name,
        config=view.settings,
        configured=view.configured,
        problems=view.problems,
        credentials=[msgspec.to_builtins(field) for field in view.credentials],
        stored=sorted(view.stored),
    )


def advanced_body(view: ProviderView) -> AdvancedConfigResponse:
    """The network's part of them. A list of addresses is in force unless it was switched off."""
    allowed = list(view.settings.get("webhook_allowed_ips") or [])
    enabled = view.settings.get("webhook_ip_allowlist_enabled")
    network = view.network or NetworkView()
    return AdvancedConfigResponse(
        ssl_verify=network.ssl_verify,
        ssl_ca_bundle=network.ssl_ca_bundle,
        proxy_url=network.proxy_url,
        http_timeout=network.http_timeout,
        webhook_ip_allowlist_enabled=bool(allowed) and enabled is not False,
        webhook_allowed_ips=allowed,
    )


def hardware_profiles(offers: Sequence[Offer]) -> list[HardwareProfile]:
    """One for each offer; its id is as people write it (`h100-x2`), or the provider's own where that is not one."""
    names = Counter(_profile_id(offer) for offer in offers)
    return [
        HardwareProfile(
            id=name if names[name := _profile_id(offer)] == 1 else offer.hardware,
            hardware_type=offer.hardware,
            model=offer.gpu or None,
            cost_per_hour=_usd(offer.price_micro_usd_per_hour),
            cost_per_second=_usd(offer.price_micro_usd_per_hour) / HOUR_S,
            gpu_count=offer.gpu_count,
            vram_gb=offer.vram_gb,
            region=offer.region,
            spot=offer.spot,
            availability=offer.availability,
        )
        for offer in offers
    ]


def hardware_options(view: ProviderView) -> HardwareOptionsResponse:
    """The provider's machines, with the dearest last."""
    profiles = sorted(hardware_profiles(view.offers), key=lambda one: (one.cost_per_hour, one.hardware_type))
    options = [
        HardwareOption(
            id=one.hardware_type,
            name=one.hardware_type if one.model is None else f"{one.gpu_count} x {one.model}",
            cost_per_second=round(one.cost_per_second, 9),
            cost_per_hour=one.cost_per_hour,
            available=one.availability != "none",
        )
        for one in profiles
    ]
    message = None if view.configured else "; ".join(view.problems) or f"{view.name} is not set up"
    default = str(view.settings.get("hardware") or view.default_hardware or DEFAULT_HARDWARE)
    return HardwareOptionsResponse(hardware=options, default_hardware=default, message=message)


def cost_estimate(view: ProviderView, hardware: str | None, average_s: float | None) -> CostEstimateResponse:
    """An estimate when there is a price and at least one job to learn from."""
    wanted = hardware or str(view.settings.get("hardware") or view.default_hardware)
    chosen = chosen_offer(view.offers, wanted)
    if chosen is None:
        return CostEstimateResponse(has_estimate=False, message=f"{view.name} has no price for {wanted or 'a machine'}")
    per_hour = _usd(chosen.price_micro_usd_per_hour)
    if average_s is None:
        message = f"no job of {view.name} has ended in the last 30 days; it costs ${per_hour:.2f} an hour"
        return CostEstimateResponse(has_estimate=False, hardware_cost_per_hour=per_hour, message=message)
    return CostEstimateResponse(
        has_estimate=True,
        estimated_cost_usd=round(per_hour * average_s / HOUR_S, 6),
        avg_duration_seconds=average_s,
        hardware_cost_per_hour=per_hour,
    )


def chosen_offer(offers: Sequence[Offer], hardware: str) -> Offer | None:
    """The cheapest offer that the name means: the provider's id, or a profile such as `h100-x2`."""
    wanted = hardware.lower()
    found = [offer for offer in offers if wanted in {offer.hardware.lower(), _profile_id(offer)}]
    return min(found, key=lambda offer: offer.price_micro_usd_per_hour, default=None)


def breakers(views: Sequence[ProviderView], now: datetime) -> CircuitBreakersResponse:
    """The breakers of all providers."""
    found = [
        CircuitBreaker(
            name=view.name,
            state=view.breaker.state,
            failure_count=view.breaker.failures,
            retry_after=None
            if view.breaker.retry_at is None
            else max(0.0, round((view.breaker.retry_at - now).total_seconds(), 1)),
        )
        for view in views
    ]
    return CircuitBreakersResponse(circuit_breakers=found, total=len(found))


def credential_body(view: CredentialView) -> CredentialResponse:
    """One stored key."""
    return CredentialResponse(
        id=view.id,
        provider=view.provider,
        credential_name=view.credential_name,
        description=view.description,
        created_at=iso(view.created_at) or "",
        updated_at=iso(view.updated_at) or "",
        is_active=view.problem is None,
        problem=view.problem,
    )


def stale(views: Sequence[CredentialView], now: datetime, days: int) -> list[CredentialView]:
    """Keys that have not been given anew for so many days."""
    return [view for view in views if view.updated_at < now - timedelta(days=days)]


def _profile_id(offer: Offer) -> str:
    name = offer.gpu.split(" ", maxsplit=1)[0].lower() if offer.gpu else offer.hardware.lower()
    return name if offer.gpu_count <= 1 else f"{name}-x{offer.gpu_count}"


def _usd(micro: int) -> float:
    return micro / MICRO
