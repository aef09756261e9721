"""One connection to NATS per process: it reconnects for ever, says so in logs and metrics, and drains at the end."""

import asyncio
from typing import Self

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from shared.contracts.subjects import inbox_prefix
from shared.observability import metrics
from shared.settings import Secret

CONNECT_S = 30.0
_RECONNECT_WAIT_S = 0.25
_ATTEMPT_S = 2.0
_CLOSE_S = 5.0
_FLUSH_S = 2
_PING_S = 10.0

log = structlog.stdlib.get_logger()


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where NATS is and who we are there. The URL carries no password: a cluster's other servers would not get it."""

    url: str
    user: str
    password: Secret


class Bus:
    """A NATS connection whose replies arrive where no other service may listen."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._closing = False
        self.closed = asyncio.Event()
        """Set when the connection is gone for good, asked or not."""

    @classmethod
    async def connect(cls, settings: BusSettings, *, service: str, timeout_s: float = CONNECT_S) -> Self:
        """Connects, or raises TimeoutError when no server accepts us within `timeout_s`."""
        client = Client()
        bus = cls(client)
        async with asyncio.timeout(timeout_s):
            await client.connect(
                settings.url.split(","),
                user=settings.user,
                password=settings.password.reveal(),
                name=service,
                inbox_prefix=inbox_prefix(service),
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType] - typed int, used as float
                connect_timeout=_ATTEMPT_S,  # pyright: ignore[reportArgumentType] - typed int, used as float
                ping_interval=_PING_S,  # pyright: ignore[reportArgumentType] - typed int, used as float
                error_cb=bus._on_error,
                disconnected_cb=bus._on_disconnect,
                reconnected_cb=bus._on_reconnect,
                closed_cb=bus._on_close,
            )
        return bus

    @property
    def is_connected(self) -> bool:
        """Whether a server is at the other end right now."""
        return self.client.is_connected

    async def close(self) -> None:
        """Sends what is still buffered, then closes; a connection that is down is closed at once."""
        if self.client.is_closed:
            return
        self._closing = True
        for step in (self._flush, self.client.close):
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await step()
            except (nats.errors.Error, OSError) as error:  # the server is away: there is nobody to say goodbye to
                log.warning("bus.close.failed", step=step.__name__, error=repr(error))
            except asyncio.CancelledError as error:  # nats-py raises it too, when its own reader was cancelled
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                log.warning("bus.close.failed", step=step.__name__, error=repr(error))

    async def _flush(self) -> None:
        if self.client.is_connected:
            await self.client.flush(timeout=_FLUSH_S)

    async def _on_error(self, error: Exception) -> None:
        metrics.bus_errors.add(1)
        log.warning("bus.error.reported", error=repr(error))

    async def _on_disconnect(self) -> None:
        metrics.bus_disconnects.add(1)
        log.warning("bus.connection.lost")

    async def _on_reconnect(self) -> None:
        if self._closing:  # a reconnect that was just succeeding outlives nats-py's close
            await self.client.close()
            return
        log.info("bus.connection.restored")

    async def _on_close(self) -> None:
        self.closed.set()
