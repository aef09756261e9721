"""`/api/v1/queue`, `/api/v1/accounts`, `/api/v1/whatif`: what is, what was, and what would have been."""

from typing import Annotated, Any

from litestar import MediaType, Response, Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from services.gateway.past import WhatIfRequest
from shared.contracts.whatif import WhatIfReport

Limit = Annotated[int, QueryParameter(ge=1, le=10_000)]
Offset = Annotated[int, QueryParameter(ge=0)]


@get("/queue")
async def queue(parts: Parts, at: FromQuery[str | None] = None) -> Response[dict[str, Any]]:
    """Who holds the slots, who waits, in which order and why; now, or as it was `at` a log position or ISO 8601 time.

    Of the past: the reasons that were recorded by then (`undecided` before a job was looked at).
    """
    content: Any = await parts.reads.queue() if at is None else await parts.past.queue(at)
    return Response(content, media_type=MediaType.JSON)


@get("/accounts/{owner:str}")
async def account(
    owner: FromPath[str],
    parts: Parts,
    month: FromQuery[str | None] = None,
    at: FromQuery[str | None] = None,
    limit: Limit = 1000,
    offset: Offset = 0,
) -> dict[str, Any]:
    """One owner's ledger of a month in micro-dollars: balances, and each job's money; now, or as it was `at` a moment.

    `month` is 2026-11; without it the month of the moment. `balances` sum to zero (`sum_micro_usd`). `limit` and
    `offset` page through `jobs`.
    """
    return await parts.past.account(owner, month, at, limit, offset)


@post("/whatif", status_code=OK, guards=[require_json])
async def what_if(data: JSONBody[WhatIfRequest], parts: Parts, principal: Caller) -> WhatIfReport:
    """Replay the log's arrivals under another policy or price list, and tell wait, cost and fairness of both.

    Writes nothing. An empty policy takes every recorded decision again: `decisions.reproduced` of
    `decisions.recorded`, and the first that differs. It may take a minute for a long log; one is answered at a time.
    """
    return await parts.past.what_if(data, principal)


ROUTER = Router("/api/v1", route_handlers=[queue, account, what_if], tags=["Time travel"])
