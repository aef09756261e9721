"""One LISTEN connection for all the readers of a process: they wake when a batch is committed."""

import asyncio
from collections.abc import AsyncGenerator

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from shared.eventstore.outages import OUTAGES

CHANNEL = "log_appended"
SAFETY_POLL_S = 1.0
_CONNECT_TIMEOUT_S = 10.0

log = structlog.stdlib.get_logger()


class Wakeups:
    """Shares a connection of the pool while somebody listens; a lost one is replaced at the next turn."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._connection: PoolConnectionProxy | None = None
        self._listeners: set[asyncio.Event] = set()
        self._connecting = asyncio.Lock()

    async def listen(self) -> AsyncGenerator[None]:
        """Yields at once, after each batch, and at least every SAFETY_POLL_S, whether Postgres answers or not."""
        woken = asyncio.Event()
        self._listeners.add(woken)
        try:
            await self._connect()
            while True:
                woken.clear()
                yield
                await self._connect()
                try:
                    async with asyncio.timeout(SAFETY_POLL_S):
                        await woken.wait()
                except TimeoutError:
                    continue
        finally:
            self._listeners.discard(woken)
            if not self._listeners:
                await self._disconnect()

    def _wake(self, *_: object) -> None:
        for woken in self._listeners:
            woken.set()

    def _is_listening(self) -> bool:
        try:
            return self._connection is not None and not self._connection.is_closed()
        except asyncpg.InterfaceError:  # the pool took a dead connection back
            return False

    async def _connect(self) -> None:
        async with self._connecting:
            if self._is_listening():
                return
            await self._disconnect()
            try:
                connection = await self._pool.acquire(timeout=_CONNECT_TIMEOUT_S)
                self._connection = connection
                await connection.add_listener(CHANNEL, self._wake)
            except OUTAGES as error:
                log.warning("eventstore.listen.unavailable", error=repr(error))

    async def _disconnect(self) -> None:
        alive = self._is_listening()
        connection, self._connection = self._connection, None
        if connection is None or not alive:
            return
        try:
            await connection.remove_listener(CHANNEL, self._wake)
            await self._pool.release(connection, timeout=_CONNECT_TIMEOUT_S)
        except OUTAGES as error:
            log.warning("eventstore.listen.release_failed", error=repr(error))
