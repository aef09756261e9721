"""Seals the global order: a running hash over ranges of events, so that no range can be changed unseen (decision 0002).

Run by the relay. A seal is written for every SEAL_EVERY events, and for fewer when no more come for SEAL_IDLE_S.
"""

import asyncio

import asyncpg
import structlog

from shared.eventstore.group_commit import Connection
from shared.eventstore.hashing import NO_HASH, seal_hash
from shared.eventstore.outages import OUTAGES
from shared.eventstore.queries import QUERIES

SEAL_EVERY = 256
SEAL_IDLE_S = 5.0
_TURN_S = 1.0
_TIMEOUT_S = 30.0

log = structlog.stdlib.get_logger()


async def seal_next(connection: Connection, *, at_least: int) -> int:
    """Seals the next at most SEAL_EVERY events if there are `at_least` so many; how many it sealed."""
    last = await connection.fetchrow(QUERIES.last_seal, timeout=_TIMEOUT_S)
    sealed_to, previous = (last["to_position"], last["hash"]) if last else (0, NO_HASH)
    rows = await connection.fetch(QUERIES.hashes_after, sealed_to, SEAL_EVERY, timeout=_TIMEOUT_S)
    if len(rows) < at_least:
        return 0
    first, end = sealed_to + 1, rows[-1]["global_position"]
    hash_ = seal_hash(previous, first, end, (row["hash"] for row in rows))
    await connection.execute(QUERIES.add_seal, first, end, len(rows), hash_, timeout=_TIMEOUT_S)
    return len(rows)


async def unsealed(connection: Connection) -> tuple[int, int]:
    """Where the sealed part ends and where the log does."""
    last = await connection.fetchrow(QUERIES.last_seal, timeout=_TIMEOUT_S)
    head: int = await connection.fetchval(QUERIES.head, timeout=_TIMEOUT_S)
    return (last["to_position"] if last else 0), head


class Sealer:
    """Seals while it leads, whether NATS answers or not; an outage of Postgres is waited out."""

    def __init__(self, pool: asyncpg.Pool, leading: asyncio.Event, *, idle_s: float = SEAL_IDLE_S) -> None:
        self._pool = pool
        self._leading = leading
        self._idle_s = idle_s
        self._head = 0
        self._grew_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Takes a turn every second until `stop`."""
        while not stop.is_set():
            if self._leading.is_set():
                try:
                    async with self._pool.acquire(timeout=_TIMEOUT_S) as connection:
                        await self._take_turn(connection, stop)
                except asyncpg.UniqueViolationError:
                    log.info("relay.seal.taken")  # another relay leads by now and was faster
                except OUTAGES as error:
                    log.warning("relay.seal.postponed", error=repr(error))
            await pause(stop, min(_TURN_S, self._idle_s))

    async def _take_turn(self, connection: Connection, stop: asyncio.Event) -> None:
        while await seal_next(connection, at_least=SEAL_EVERY) and not stop.is_set():
            pass
        sealed_to, head = await unsealed(connection)
        if head != self._head:
            self._head, self._grew_at = head, asyncio.get_running_loop().time()
        elif head > sealed_to and asyncio.get_running_loop().time() >= self._grew_at + self._idle_s:
            await seal_next(connection, at_least=1)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Returns after so many seconds, or as soon as `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
