"""Questions about the past that other services answer: the queue and an account at any moment, and what-if."""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.gateway.domain.moments import parse_at
from services.gateway.domain.refusals import invalid
from services.gateway.handlers import Principal
from shared.clock import Clock
from shared.contracts.account import ReadAccount
from shared.contracts.job import ReadQueue
from shared.contracts.whatif import Policy, PriceList, SimulatePolicy, WhatIfReport
from shared.eventstore.api import EventStore
from shared.ids import new_id
from shared.messaging.commands import CommandSender

ACTOR = "system:gateway"
QUEUE_TIMEOUT_S = 65.0
WHATIF_TIMEOUT_S = 600.0
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class WhatIfRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The question: a policy, a price list, a window (positions or times), and how many rows of single jobs to show."""

    policy: Policy = msgspec.field(default_factory=Policy)
    prices: PriceList | None = None
    since: str | int | None = None
    until: str | int | None = None
    jobs_limit: int = 0
    jobs_offset: int = 0


class Past:
    """Asks the owners. Raises Unavailable when one is away."""

    def __init__(self, store: EventStore, sender: CommandSender, clock: Clock) -> None:
        self._store = store
        self._sender = sender
        self._clock = clock

    async def queue(self, at: str) -> dict[str, Any]:
        """The queue as it was at a position or a time, with `up_to` and `at` saying which."""
        position = await self.position(at, "at")
        reply = await self._sender.send(
            "scheduler",
            ReadQueue(up_to_position=position),
            correlation_id=new_id(),
            actor=ACTOR,
            timeout_s=QUEUE_TIMEOUT_S,
        )
        return {**reply.data, "up_to": position, "at": await self._moment_of(position)}

    async def account(self, owner: str, month: str | None, at: str | None, limit: int, offset: int) -> dict[str, Any]:
        """One owner's month, now or as it was. Without `month`: the month of the moment asked about."""
        if month is not None and not _MONTH.fullmatch(month):
            raise invalid("month", f"{month!r} is not a month", "Use year and month, for example 2026-11.")
        position = 0 if at is None else await self.position(at, "at")
        chosen = month or await self._month(at, position)
        command = ReadAccount(owner=owner, month=chosen, up_to_position=position, limit=limit, offset=offset)
        reply = await self._sender.send("billing", command, correlation_id=new_id(), actor=ACTOR)
        up_to = position or await self._store.head()
        return {**reply.data, "up_to": up_to, "at": await self._moment_of(up_to)}

    async def what_if(self, asked: WhatIfRequest, principal: Principal) -> WhatIfReport:
        """What another policy would have done with what came in the window."""
        command = SimulatePolicy(
            policy=asked.policy,
            prices=asked.prices,
            after_position=0 if asked.since is None else await self.position(str(asked.since), "since"),
            up_to_position=0 if asked.until is None else await self.position(str(asked.until), "until"),
            jobs_limit=asked.jobs_limit,
            jobs_offset=asked.jobs_offset,
        )
        reply = await self._sender.send(
            "scheduler",
            command,
            correlation_id=new_id(),
            actor=f"user:{principal.user_id}",
            source_ip=principal.source_ip,
            timeout_s=WHATIF_TIMEOUT_S,
        )
        return msgspec.convert(reply.data, WhatIfReport)

    async def position(self, given: str, field: str) -> int:
        """The position that a text names; of a time, the last one at or before it. 0 is before everything.

        Raises:
            Rejected: `validation_error` naming `field`.
        """
        moment = parse_at(given, field)
        if isinstance(moment, datetime):
            moment = await self._store.position_at(moment)
            if moment == 0 and field != "since":
                raise invalid(field, f"nothing had happened by {given}", "Use a later time.")
        if moment == 0 and field != "since":
            raise invalid(field, "positions begin at 1", "Use a position that the log has.")
        return moment

    async def _month(self, at: str | None, position: int) -> str:
        moment = parse_at(at) if at is not None else self._clock()
        if isinstance(moment, int):
            recorded = await self._store.read(after=position - 1, limit=1)
            moment = recorded[0].recorded_at if recorded else self._clock()
        return f"{moment.astimezone(UTC):%Y-%m}"

    async def _moment_of(self, position: int) -> str | None:
        """When what stands at a position was recorded; None behind the end of the log."""
        recorded = await self._store.read(after=position - 1, up_to=position, limit=1)
        return recorded[0].recorded_at.isoformat() if recorded else None
