"""The log is the outbox: committed events go to JetStream in the log's order, by one relay at a time.

`python -m shared.eventstore.relay` reads DATABASE_URL, NATS_URL, NATS_USER and NATS_PASSWORD. Any number may run; the
one that holds an advisory lock publishes, the others take over when its connection ends. JetStream may be wiped or
replaced at any time: the relay notices within two seconds and publishes the whole log again.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from uuid import UUID

import asyncpg
import msgspec
import nats.errors
import structlog
import uvloop
from asyncpg.pool import PoolConnectionProxy

from shared.eventstore.acks import AckInbox
from shared.eventstore.api import ANY_POSITION
from shared.eventstore.jetstream import jetstream
from shared.eventstore.outages import OUTAGES
from shared.eventstore.publisher import Publisher
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import recorded
from shared.eventstore.seals import SEAL_IDLE_S, Sealer, pause
from shared.eventstore.topology import ForeignStreamError, StreamEnd, Topology
from shared.eventstore.wakeups import CHANNEL
from shared.messaging.connection import Bus, BusSettings
from shared.messaging.right_of_way import RightOfWay
from shared.observability import logging, metrics
from shared.settings import Secret, SettingsError, load

PAGE_EVENTS = 256
INSPECT_S = 1.0
"""How often the relay looks whether JetStream is still what it left there, and at the log if no NOTIFY came."""
RETRY_S = 0.25
STANDBY_S = 0.5
_TIMEOUT_S = 30.0

log = structlog.stdlib.get_logger()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's environment."""

    database_url: Secret
    nats_url: str
    nats_user: str
    nats_password: Secret
    jetstream_replicas: int = 1
    log_format: str = "json"
    log_level: str = "INFO"


class Relay:
    """Publishes while it holds the lock. `leading` is set meanwhile; `position` is how far it has published."""

    def __init__(self, pool: asyncpg.Pool, bus: Bus, *, replicas: int = 1, seal_idle_s: float = SEAL_IDLE_S) -> None:
        self._pool = pool
        self._bus = bus
        self._replicas = replicas
        self._seal_idle_s = seal_idle_s
        self._right_of_way = RightOfWay()
        self._wake = asyncio.Event()
        self.leading = asyncio.Event()
        self.position = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Leads whenever it can, until `stop`: then the page in hand is finished first."""
        await self._right_of_way.listen(self._bus.client)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._wake_on_stop(stop))
            group.create_task(Sealer(self._pool, self.leading, idle_s=self._seal_idle_s).run(stop))
            while not stop.is_set():
                try:
                    async with self._pool.acquire(timeout=_TIMEOUT_S) as connection:
                        if await connection.fetchval(QUERIES.try_lead, timeout=_TIMEOUT_S):
                            await self._lead(connection, stop)
                except OUTAGES as error:
                    log.warning("relay.log.unavailable", error=repr(error))
                finally:
                    self.leading.clear()
                await pause(stop, STANDBY_S)

    async def _wake_on_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _lead(self, connection: PoolConnectionProxy, stop: asyncio.Event) -> None:
        """Publishes until `stop`. Losing `connection` is losing the lock; every turn uses it, so that is noticed."""
        log.info("relay.lead.taken")
        store_id = UUID(int=(await connection.fetchval(QUERIES.store_id, timeout=_TIMEOUT_S)).int)
        topology = Topology(jetstream(self._bus.client), store_id, replicas=self._replicas)
        await connection.add_listener(CHANNEL, self._on_commit)
        self.leading.set()
        foreign = False
        try:
            while not stop.is_set():
                try:
                    if foreign:
                        await topology.remake_events()
                    foreign = False
                    async with AckInbox(self._bus.client) as inbox:
                        publisher = Publisher(inbox, store_id, await self._find_end(connection, topology))
                        await self._publish(connection, topology, publisher, stop)
                except ForeignStreamError as error:
                    foreign = True
                    log.warning("relay.stream.remade", reason=str(error))
                except (nats.errors.Error, TimeoutError) as error:
                    log.warning("relay.bus.unavailable", error=repr(error))
                    await pause(stop, RETRY_S)
        finally:
            if not connection.is_closed():
                await connection.remove_listener(CHANNEL, self._on_commit)

    def _on_commit(self, *_: object) -> None:
        self._wake.set()

    async def _find_end(self, connection: PoolConnectionProxy, topology: Topology) -> StreamEnd:
        """Where the stream ends, which is where to go on, whatever we believed before."""
        await topology.ensure()
        end = await topology.end()
        if end.event_id is not None:
            event_id = await connection.fetchval(QUERIES.event_at, end.position, timeout=_TIMEOUT_S)
            if event_id != end.event_id:
                raise ForeignStreamError(f"its last event {end.event_id} is not the log's at {end.position}")
        believed: int | None = await connection.fetchval(QUERIES.published_position, timeout=_TIMEOUT_S)
        log.info("relay.publishing.resumed", position=end.position, checkpoint=believed)
        self.position = end.position
        return end

    async def _publish(
        self, connection: PoolConnectionProxy, topology: Topology, publisher: Publisher, stop: asyncio.Event
    ) -> None:
        """Publishes what is committed and what will be; returns on `stop`, or when JetStream is not as we left it."""
        inspect_at = 0.0
        while not stop.is_set():
            await self._right_of_way.give_way(unless=stop)
            self._wake.clear()
            after = publisher.position
            rows = await connection.fetch(QUERIES.read_all, after, ANY_POSITION, PAGE_EVENTS, timeout=_TIMEOUT_S)
            if rows:
                await publisher.publish(connection, [recorded(row) for row in rows])
                await connection.execute(QUERIES.remember_published, publisher.position, timeout=_TIMEOUT_S)
                self.position = publisher.position
            if asyncio.get_running_loop().time() >= inspect_at:
                inspect_at = asyncio.get_running_loop().time() + INSPECT_S
                head: int = await connection.fetchval(QUERIES.head, timeout=_TIMEOUT_S)
                metrics.relay_lag.set(max(0, head - publisher.position))
                if not await topology.is_whole(publisher.sequence):
                    log.warning("relay.stream.damaged", position=publisher.position)
                    return
            if len(rows) < PAGE_EVENTS:
                await pause(self._wake, INSPECT_S)


async def connect_bus(settings: Settings, stop: asyncio.Event) -> Bus | None:
    """A connection to NATS, however long it takes; None when `stop` comes first."""
    while not stop.is_set():
        wanted = BusSettings(url=settings.nats_url, user=settings.nats_user, password=settings.nats_password)
        try:
            return await Bus.connect(wanted, service="relay")
        except (nats.errors.Error, OSError) as error:
            log.warning("relay.bus.unavailable", error=repr(error))
        await pause(stop, RETRY_S)
    return None


async def connect_log(settings: Settings, stop: asyncio.Event) -> asyncpg.Pool | None:
    """A pool on the log's database, however long it takes; None when `stop` comes first."""
    while not stop.is_set():
        try:
            return await asyncpg.create_pool(settings.database_url.reveal(), min_size=1, max_size=3, timeout=_TIMEOUT_S)
        except OUTAGES as error:
            log.warning("relay.log.unavailable", error=repr(error))
        await pause(stop, RETRY_S)
    return None


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Relays until `stop`."""
    pool = await connect_log(settings, stop)
    if pool is None:
        return
    try:
        bus = await connect_bus(settings, stop)
        if bus is None:
            return
        try:
            await Relay(pool, bus, replicas=settings.jetstream_replicas).run(stop)
        finally:
            await bus.close()
    finally:
        await pool.close()


async def _serve_until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await serve(settings, stop)
    log.info("relay.process.stopped")


def main(environ: Mapping[str, str]) -> int:
    """Relays until SIGTERM; the exit code of the process."""
    try:
        settings = load(Settings, environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 78  # EX_CONFIG
    logging.configure("relay", log_format=settings.log_format, level=settings.log_level)
    uvloop.run(_serve_until_signal(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
