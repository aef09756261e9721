"""A pull request that always stands: JetStream sends a durable's messages as they come, and silence is noticed.

nats-py's `fetch` loses requests over reconnects and deleted consumers; this one asks anew whenever it is not certain
that the server still knows of its request.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from shared.contracts.subjects import EVENTS_STREAM, Durable

BATCH = 256
EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
SILENCE_S = 3.0
_REFUSED_S = 0.5
_HEARTBEAT = "100"
_EXPIRED = "408"
_NANOSECONDS = 1_000_000_000


class Message(Protocol):
    """A delivery: a nats-py message, or what stands for one."""

    @property
    def subject(self) -> str:
        """Where it was published."""
        ...

    @property
    def headers(self) -> Mapping[str, str] | None:
        """As the relay wrote them."""
        ...

    @property
    def data(self) -> bytes:
        """The envelope's JSON."""
        ...

    async def ack(self) -> None:
        """It is handled: it need not be delivered again."""
        ...

    async def in_progress(self) -> None:
        """It is being handled: its deadline starts anew."""
        ...


class Pull(Protocol):
    """The deliveries of one durable, as a consumer takes them. JetStream may drop, repeat and reorder them."""

    def take(self) -> Sequence[Message]:
        """What has arrived since the last call."""
        ...

    async def ask(self) -> None:
        """Sees to it that more arrives."""
        ...

    async def restart(self) -> None:
        """Forgets what was asked; a message on its way is delivered again."""
        ...

    async def close(self) -> None:
        """Ends it."""
        ...


MakePull = Callable[[Durable, Callable[[], None]], Pull]
"""`make(durable, arrived)`: `arrived` is called when there is something to take."""


class StandingPull:
    """The messages of one durable. `arrived` is called when there is something to `take`."""

    def __init__(self, client: Client, durable: Durable, arrived: Callable[[], None]) -> None:
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{durable.name}"
        self._arrived = arrived
        self._messages: deque[Msg] = deque()
        self._subscription: NatsSubscription | None = None
        self._expected = 0
        self._heard_at = 0.0
        self._not_before = 0.0
        self._reconnects = 0

    def take(self) -> list[Msg]:
        """What has arrived since the last call, in the stream's order."""
        taken = list(self._messages)
        self._messages.clear()
        return taken

    async def ask(self) -> None:
        """Sends a request unless one stands; starts afresh when the server has been silent or was replaced."""
        now = asyncio.get_running_loop().time()
        lost = self._reconnects != self._client.stats["reconnects"] or now > self._heard_at + SILENCE_S
        if self._expected and not lost:
            return
        if self._subscription is None or self._expected:
            await self.restart()
        if now < self._not_before:
            return
        self._expected, self._heard_at = BATCH, now
        self._reconnects = self._client.stats["reconnects"]
        request = {
            "batch": BATCH,
            "expires": int(EXPIRES_S * _NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT_S * _NANOSECONDS),
        }
        inbox = self._subscription.subject if self._subscription else ""
        await self._client.publish(self._subject, msgspec.json.encode(request), reply=inbox)

    async def restart(self) -> None:
        """Forgets what was asked and listens on a new inbox; a message on its way is lost now and delivered again."""
        await self.close()
        self._expected = 0
        self._subscription = await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType] - an untyped future
            self._client.new_inbox(), cb=self._receive
        )

    async def close(self) -> None:
        """Stops listening."""
        if self._subscription is not None and not self._client.is_closed and not self._client.is_draining:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def _receive(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        status = (message.headers or {}).get("Status")
        if status is None:
            self._expected -= 1
            self._messages.append(message)
            self._arrived()
        elif status != _HEARTBEAT:  # the request is over: expired, or refused (no such consumer, no JetStream)
            self._expected = 0
            if status != _EXPIRED:
                self._not_before = asyncio.get_running_loop().time() + _REFUSED_S
            self._arrived()
