"""Events that were given up: listed with their reason, and handled again when somebody asks."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import structlog

from shared.contracts.admin import ReplayParked
from shared.contracts.envelope import RecordedEvent
from shared.eventstore.api import EventStore
from shared.messaging.consumer import Subscription
from shared.messaging.inbox import QUERIES
from shared.observability.logging import redact_text
from shared.problems import Rejected

log = structlog.stdlib.get_logger()


async def list_parked(pool: asyncpg.Pool) -> list[dict[str, Any]]:
    """`durable, position, type, stream, reason, parked_at` of each event given up; at most 1000."""
    return [dict(row) for row in await pool.fetch(QUERIES.list_parked)]


async def replay_parked(
    pool: asyncpg.Pool, store: EventStore, subscriptions: Sequence[Subscription], command: ReplayParked
) -> str | None:
    """Handles a parked event now, beside the consumer; None if that went well, else why not.

    Raises:
        Rejected: `not_found` when no such durable or no such parked event is here.
    """
    subscription = next((one for one in subscriptions if one.durable.name == command.durable), None)
    waiting = await pool.fetchval(QUERIES.has_parked, command.durable, command.position)
    found = await store.read(after=command.position - 1, up_to=command.position, limit=1)
    if subscription is None or not waiting or not found:
        raise Rejected("not_found", f"{command.durable} has nothing parked at {command.position}")
    try:
        await _handle(pool, subscription, found[0])
    except Exception as error:
        log.exception("parking.replay.failed", durable=command.durable, position=command.position)
        return redact_text(f"{type(error).__name__}: {error}")
    log.info("parking.event.replayed", durable=command.durable, position=command.position)
    return None


async def _handle(pool: asyncpg.Pool, subscription: Subscription, event: RecordedEvent) -> None:
    durable = subscription.durable.name
    if subscription.react is not None:
        await subscription.react(event)
    async with pool.acquire() as connection, connection.transaction():
        await connection.fetchval(QUERIES.lock_checkpoint, durable)
        if await connection.fetchval(QUERIES.take_parked, durable, event.global_position) is None:
            return  # somebody else has just replayed it
        if subscription.project is not None:
            await subscription.project(connection, event)  # pyright: ignore[reportArgumentType] - the pool's proxy
