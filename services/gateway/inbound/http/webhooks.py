"""`/api/webhooks`: what providers tell us by themselves. It goes to the bridge as it came, and is a hint to look."""

from typing import Any, Literal

import msgspec
from litestar import Request, Router, post
from litestar.params import FromPath, JSONBody

from services.gateway.domain.refusals import invalid
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from shared.contracts.provider import ReceiveWebhook
from shared.messaging.commands import MAX_WEBHOOK_BYTES

_KEPT_BACK = frozenset({"cookie", "authorization", "x-api-key"})
"""Headers of people, which no provider signs with."""


class WebhookReceived(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`received`: the run will be looked at. `ignored`: it concerns no run of ours, or was told before."""

    status: Literal["received", "ignored"]
    job_id: str | None = None
    updates: dict[str, Any] | None = None
    """Nothing is taken from a webhook itself."""
    reason: str | None = None


class WebhookTestRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to send a test event to. `timeout` in seconds."""

    webhook_url: str
    provider: str | None = None
    timeout: float = 30
    method: str = "direct"


class WebhookTestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    success: bool
    latency_ms: float | None
    status_code: int | None
    error: str | None
    method: str


@post("/{provider:str}", status_code=OK, request_max_body_size=MAX_WEBHOOK_BYTES)
async def receive(
    provider: FromPath[str], request: Request[Any, Any, Any], parts: Parts, principal: Caller
) -> WebhookReceived:
    """Take a provider's webhook, up to 10 MB.

    Refused from an address outside `webhook_allowed_ips`, and without a genuine signature.
    """
    webhook = ReceiveWebhook(
        provider=provider,
        source_ip=principal.source_ip,
        headers={name.lower(): value for name, value in request.headers.items() if name.lower() not in _KEPT_BACK},
        query={name: request.query_params[name] for name in request.query_params},
        body=await request.body(),
    )
    told = await parts.providers.receive(webhook, principal)
    if told["status"] == "received":
        return WebhookReceived(status="received", job_id=told["job_id"], updates={})
    return WebhookReceived(status="ignored", job_id=told["job_id"], reason=told["reason"])


@post("/test", status_code=OK, guards=[require_json])
async def test(data: JSONBody[WebhookTestRequest], parts: Parts) -> WebhookTestAnswer:
    """Send a test event to a receiver of yours and say what it answered."""
    if data.method != "direct":
        raise invalid(
            "method", f"{data.method[:64]!r} is not there", "Use direct: the event is sent from this gateway."
        )
    body = {"type": "test", "event_type": "test", "provider": data.provider, "job_id": None, "status": "test"}
    found = await parts.probe.of_url(data.webhook_url, body, data.timeout)
    error = found.error or (None if found.success else found.message)
    return WebhookTestAnswer(
        success=found.success,
        latency_ms=found.latency_ms,
        status_code=found.status_code,
        error=error,
        method=data.method,
    )


ROUTER = Router("/api/webhooks", route_handlers=[receive, test], tags=["Webhooks"])
