"""`/api/v1/admin`: prove the read models against the log, and look after messages that were given up."""

from typing import Any

import msgspec
from litestar import Router, get, post
from litestar.params import FromQuery, JSONBody

from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which parked message to handle again."""

    service: str
    durable: str
    position: int


@post("/rebuild", status_code=OK)
async def rebuild(parts: Parts, principal: Caller, service: FromQuery[str | None] = None) -> dict[str, Any]:
    """Refold every read model from the log (of one `service`, or all) and say whether any row came out different."""
    return await parts.services.rebuild(service, principal)


@get("/parked")
async def parked(parts: Parts, principal: Caller, service: FromQuery[str | None] = None) -> dict[str, Any]:
    """Messages that were given up after the last try, with the reason, by service."""
    return await parts.services.parked(service, principal)


@post("/parked/replay", status_code=OK, guards=[require_json])
async def replay(data: JSONBody[ReplayRequest], parts: Parts, principal: Caller) -> dict[str, Any]:
    """Handle one parked message again."""
    return await parts.services.replay(data.service, data.durable, data.position, principal)


ROUTER = Router("/api/v1/admin", route_handlers=[rebuild, parked, replay], tags=["Administration"])
