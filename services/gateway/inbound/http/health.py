"""Is it alive, is it ready, and which part is not."""

from typing import Literal

import msgspec
from litestar import get

from services.gateway.administration import Health
from services.gateway.inbound.http.parts import Parts


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
async def health_detail(parts: Parts) -> Health:
    """Every part of Tunewright, asked now."""
    return await parts.services.health()


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
