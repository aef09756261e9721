"""`/api/cloud/providers` and what belongs to it: settings, keys, hardware, prices, breakers."""

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from services.gateway.domain.provider_body import (
    AdvancedConfigResponse,
    CircuitBreakersResponse,
    CostEstimateResponse,
    HardwareOptionsResponse,
    HardwareProfile,
    ProviderConfigResponse,
    ProvidersListResponse,
    advanced_body,
    breakers,
    config_body,
    hardware_options,
    hardware_profiles,
    provider_body,
)
from services.gateway.domain.refusals import invalid
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from services.gateway.outbound.webhook_probe import ProbeResult
from shared.contracts.provider import VersionView

MICRO = 1_000_000


class ValidateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the provider takes our key, and whose it is. `token_source` says where the key is from."""

    valid: bool
    user_info: dict[str, Any] | None
    error: str | None
    token_source: str | None


class SaveTokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key. Where a provider wants several, `credential_name` says which."""

    api_token: str
    credential_name: str | None = None

    def __repr__(self) -> str:
        return f"SaveTokenRequest({self.credential_name})"


class SaveTokenResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Keys are kept encrypted in the database, so there is no file."""

    success: bool = True
    file_path: None = None
    error: None = None


class ModelVersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version; `full_version` is how the provider takes it."""

    id: str
    created_at: str | None
    model_id: str
    full_version: str

    @classmethod
    def of(cls, view: VersionView) -> "ModelVersionInfo":
        """In the documented shape."""
        return cls(
            id=view.id, created_at=view.created_at, model_id=view.model_id, full_version=f"{view.model_id}:{view.id}"
        )


class ModelVersionsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first; `current_version` None: the newest is used."""

    versions: list[ModelVersionInfo]
    current_version: str | None
    error: None = None


class ProviderBilling(msgspec.Struct, frozen=True, kw_only=True):
    """What is left, if the provider says so; else the note tells where to look."""

    balance: float | None
    balance_note: str
    hardware: list[HardwareProfile]
    default_hardware: str


class WebhookTestResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the webhook's address leads to this gateway."""

    success: bool
    message: str
    latency_ms: float | None = None
    error: str | None = None


class ExternalWebhookTestResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The same with what came back. Nothing is run at the provider for it, so there is no prediction."""

    success: bool
    message: str
    latency_ms: float | None
    status_code: int | None
    error: str | None
    prediction_id: None = None
    details: dict[str, Any]


@get("/providers")
async def list_providers(parts: Parts, principal: Caller) -> ProvidersListResponse:
    """Every provider, whether it is set up, and what it has."""
    return ProvidersListResponse(providers=[provider_body(view) for view in await parts.providers.all(principal)])


@get(["/providers/{provider:str}", "/providers/{provider:str}/config"])
async def get_config(provider: FromPath[str], parts: Parts, principal: Caller) -> ProviderConfigResponse:
    """A provider's settings as they are in force."""
    return config_body(await parts.providers.one(provider, principal))


@put(["/providers/{provider:str}", "/providers/{provider:str}/config"], guards=[require_json])
async def put_config(
    provider: FromPath[str], data: JSONBody[dict[str, Any]], parts: Parts, principal: Caller
) -> ProviderConfigResponse:
    """Change settings by name; null takes one back to what it is by itself. Names: docs/secrets-and-network.md.

    What is not named stays as it is. `ssl_verify: false` needs `ssl_verify_acknowledged: true` beside it.
    """
    return config_body(await parts.providers.configure(provider, data, principal))


@get("/providers/{provider:str}/advanced")
async def get_advanced(provider: FromPath[str], parts: Parts, principal: Caller) -> AdvancedConfigResponse:
    """How calls to the provider leave, and who may send its webhooks."""
    return advanced_body(await parts.providers.one(provider, principal))


async def _change_advanced(
    provider: FromPath[str], data: JSONBody[dict[str, Any]], parts: Parts, principal: Caller
) -> AdvancedConfigResponse:
    """Change them; null takes one back to what it is by itself."""
    return advanced_body(await parts.providers.configure(provider, data, principal))


patch_advanced = patch("/providers/{provider:str}/advanced", guards=[require_json], operation_id="patch_advanced")(
    _change_advanced
)
put_advanced = put("/providers/{provider:str}/advanced", guards=[require_json], operation_id="put_advanced")(
    _change_advanced
)


@get("/providers/{provider:str}/validate")
async def validate(provider: FromPath[str], parts: Parts, principal: Caller) -> ValidateResponse:
    """Ask the provider whether it takes our key."""
    account = await parts.providers.account(provider, principal)
    info = {"username": account.username, "detail": account.detail} if account.valid else None
    return ValidateResponse(valid=account.valid, user_info=info, error=account.error, token_source=account.source)


@put("/providers/{provider:str}/token", guards=[require_json])
async def put_token(
    provider: FromPath[str], data: JSONBody[SaveTokenRequest], parts: Parts, principal: Caller
) -> SaveTokenResponse:
    """Store a key for everybody, encrypted; it goes before one of the environment, a file or a vault."""
    await parts.providers.store(provider, data.api_token, principal, credential=data.credential_name)
    return SaveTokenResponse()


@delete("/providers/{provider:str}/token", status_code=OK)
async def delete_token(
    provider: FromPath[str],
    parts: Parts,
    principal: Caller,
    credential_name: FromQuery[str | None] = None,
    *,
    force: FromQuery[bool] = False,
) -> SaveTokenResponse:
    """Forget what was stored for everybody; with `force` even while runs need it, which nobody can end then."""
    await parts.providers.remove(provider, principal, credential=credential_name, force=force)
    return SaveTokenResponse()


@get("/providers/{provider:str}/versions")
async def versions(
    provider: FromPath[str], parts: Parts, principal: Caller, model_id: FromQuery[str | None] = None
) -> ModelVersionsResponse:
    """The versions of the model that trains there."""
    found, current = await parts.providers.versions(provider, model_id, principal)
    return ModelVersionsResponse(versions=[ModelVersionInfo.of(view) for view in found], current_version=current)


@get("/providers/{provider:str}/billing")
async def billing(provider: FromPath[str], parts: Parts, principal: Caller) -> ProviderBilling:
    """What is left on the account, and what machines cost."""
    view = await parts.providers.one(provider, principal)
    micro, note = await parts.providers.balance(provider, principal)
    return ProviderBilling(
        balance=None if micro is None else micro / MICRO,
        balance_note=note,
        hardware=hardware_profiles(view.offers),
        default_hardware=view.default_hardware,
    )


@post("/providers/{provider:str}/test-webhook", status_code=OK)
async def test_webhook(provider: FromPath[str], parts: Parts, principal: Caller) -> WebhookTestResponse:
    """Call the public address of this gateway as a provider would; see `webhook_url` and TUNEWRIGHT_PUBLIC_URL."""
    found = await _probe(provider, parts, principal)
    return WebhookTestResponse(
        success=found.success, message=found.message, latency_ms=found.latency_ms, error=found.error
    )


@post("/providers/{provider:str}/test-webhook-external", status_code=OK)
async def test_webhook_external(
    provider: FromPath[str], parts: Parts, principal: Caller
) -> ExternalWebhookTestResponse:
    """The same with the answer's status. It is asked from here by the public way, not from the provider's machines."""
    found = await _probe(provider, parts, principal)
    return ExternalWebhookTestResponse(
        success=found.success,
        message=found.message,
        latency_ms=found.latency_ms,
        status_code=found.status_code,
        error=found.error,
        details={"url": found.url},
    )


async def _probe(provider: str, parts: Parts, principal: Caller) -> ProbeResult:
    view = await parts.providers.one(provider, principal)
    origin = view.settings.get("webhook_url") or parts.public_url
    if not origin:
        advice = "Set TUNEWRIGHT_PUBLIC_URL, or webhook_url of the provider."
        raise invalid("webhook_url", "this gateway does not know its public address", advice)
    return await parts.probe.of_gateway(str(origin))


@get("/hardware-options")
async def get_hardware_options(
    parts: Parts, principal: Caller, provider: FromQuery[str] = "replicate"
) -> HardwareOptionsResponse:
    """The machines of a provider and what they cost; of one that is not set up, what it is known to have."""
    return hardware_options(await parts.providers.one(provider, principal))


@post("/cost-estimate", status_code=OK, guards=[require_json])
async def estimate_cost(
    data: JSONBody[list[dict[str, Any]]],  # noqa: ARG001 - the documented body; the estimate goes by time, not by size
    parts: Parts,
    principal: Caller,
    provider: FromQuery[str] = "replicate",
    hardware: Annotated[str | None, QueryParameter(required=False)] = None,
) -> CostEstimateResponse:
    """What a job may cost at a provider. The body is a dataloader list, as for a submit; it may be empty."""
    return await parts.providers.estimate(provider, hardware, principal)


@get("/circuit-breakers")
async def circuit_breakers(parts: Parts, principal: Caller) -> CircuitBreakersResponse:
    """Whether calls to each provider are let through."""
    return breakers(await parts.providers.all(principal), parts.reads.now())


ROUTERS = [
    Router(
        "/api/cloud",
        route_handlers=[
            list_providers,
            get_config,
            put_config,
            get_advanced,
            patch_advanced,
            put_advanced,
            validate,
            put_token,
            delete_token,
            versions,
            billing,
            test_webhook,
            test_webhook_external,
            get_hardware_options,
            estimate_cost,
        ],
        tags=["Providers"],
    ),
    *(Router(path, route_handlers=[circuit_breakers], tags=["Providers"]) for path in ("/api/cloud", "/api/metrics")),
]
