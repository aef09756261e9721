"""`/api/v1/attempts`: where trainers report."""

from typing import Any
from uuid import UUID

from litestar import Request, Router, post
from litestar.params import FromPath

from services.gateway.inbound.http.parts import Parts
from services.gateway.inbound.http.principal import attempt_token
from services.gateway.inbound.http.problems import OK
from shared.contracts.run import ReportAck
from shared.problems import Rejected

MAX_BODY_BYTES = 1024 * 1024


@post("/{attempt_id:str}/events", status_code=OK, request_max_body_size=MAX_BODY_BYTES)
async def report(attempt_id: FromPath[str], request: Request[Any, Any, Any], parts: Parts) -> ReportAck:
    """Store a batch of report lines (NDJSON, at most 256 lines and 512 KiB) under the attempt's token.

    The answer says up to which line everything is stored, and what the trainer is asked to do.
    """
    try:
        wanted = UUID(attempt_id)
    except ValueError:
        raise Rejected("invalid_token", "this token belongs to no such attempt") from None
    attempt = await parts.intake.admit(wanted, attempt_token(request))
    return await parts.intake.take(attempt, await request.body())


ROUTER = Router("/api/v1/attempts", route_handlers=[report], tags=["Trainer"])
