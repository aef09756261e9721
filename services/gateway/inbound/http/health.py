"""Is it alive, is it ready, and which part is not."""

from typing import Literal

import msgspec
from litestar import get
from litestar.params import FromQuery

from services.gateway.administration import Health
from services.gateway.inbound.http.parts import Caller, Parts


class Healthy(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer of `/health`: this process answers."""

    status: Literal["healthy"] = "healthy"
    mode: Literal["unified"] = "unified"


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Every part answers."""

    status: Literal["ready"] = "ready"


@get("/health", tags=["Health"])
async def health() -> Healthy:
    """This process answers."""
    return Healthy()


@get("/api/cloud/health", tags=["Health"])
async def health_detail(
    parts: Parts,
    principal: Caller,
    *,
    include_providers: FromQuery[bool] = False,
    include_replicate: FromQuery[bool] = False,
) -> Health:
    """Every part of Tunewright, asked now; with `include_providers` also each provider whose keys are there.

    A provider that does not answer is degraded, and Tunewright healthy.
    """
    found = await parts.services.health()
    if not (include_providers or include_replicate):
        return found
    only = None if include_providers else "replicate"
    return msgspec.structs.replace(
        found, components=[*found.components, *await parts.providers.health(principal, only=only)]
    )


@get("/api/cloud/health/live", tags=["Health"])
async def live() -> Live:
    """This process answers."""
    return Live()


@get("/api/cloud/health/ready", tags=["Health"])
async def ready(parts: Parts) -> Ready:
    """Postgres, NATS and all five services answer; 503 names those that do not."""
    await parts.services.require_ready()
    return Ready()


HANDLERS = [health, health_detail, live, ready]
