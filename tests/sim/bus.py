# ruff: noqa: ASYNC109, ARG002 - the signatures are those of nats-py
"""NATS in memory: requests that may be lost either way, and a JetStream that drops, repeats, reorders and is wiped.

Core NATS delivers at most once; JetStream delivers a durable's messages until they are acknowledged, in any order once
redelivery sets in. A publish is stored only if the stream is at the sequence that the publisher states.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import nats.errors
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NotFoundError

from shared.contracts.subjects import EVENTS_STREAM, Durable
from tests.sim.chaos import Chaos
from tests.sim.process import Process

LOST = "lost"
REPEATED = "repeated"
DELAYED = "delayed"
UNHEARD = "acknowledgement lost"
ACK_WAIT_S = 30.0
_TRANSIT_S = (0.0002, 0.01)
_LATE_S = (0.1, 8.0)


class SimMessage:
    """A message as nats-py hands it over."""

    __slots__ = ("_acknowledge", "data", "headers", "reply", "subject")

    def __init__(
        self,
        subject: str,
        data: bytes,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
        acknowledge: Callable[[], None] | None = None,
    ) -> None:
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers
        self._acknowledge = acknowledge

    async def ack(self) -> None:
        """It is handled."""
        if self._acknowledge is not None:
            self._acknowledge()

    async def in_progress(self) -> None:
        """Its deadline starts anew; here deadlines are only held against lost deliveries."""


Callback = Callable[[SimMessage], Awaitable[None]]


class _Subscription:
    def __init__(self, server: "SimNats", client: "SimClient", subject: str, queue: str, cb: Callback) -> None:
        self.client = client
        self.prefix = subject.rstrip(">*")
        self.is_exact = self.prefix == subject
        self.queue = queue
        self.cb = cb
        self.subject = subject
        self._server = server

    def matches(self, subject: str) -> bool:
        return subject == self.prefix if self.is_exact else subject.startswith(self.prefix)

    async def unsubscribe(self) -> None:
        self._server.subscriptions.pop(self, None)

    async def drain(self) -> None:
        self._server.subscriptions.pop(self, None)


class SimNats:
    """The server: who listens, and the stream of events."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.subscriptions: dict[_Subscription, None] = {}
        self.stream: EventStream | None = None
        self.pulls: dict[str, SimPull] = {}
        self.is_away = False

    def listeners(self, subject: str) -> list[_Subscription]:
        """Who would get a message: of each queue group one."""
        groups: dict[object, list[_Subscription]] = {}
        for one in self.subscriptions:
            if one.matches(subject):
                groups.setdefault(one.queue or one, []).append(one)
        return [group[0] if len(group) == 1 else self.chaos.random.choice(group) for group in groups.values()]

    def send(self, target: _Subscription, message: SimMessage, *, late: bool = False) -> None:
        """Delivers to one subscription after its time on the way."""
        transit_s = self.chaos.between(*(_LATE_S if late else _TRANSIT_S))
        asyncio.get_running_loop().call_later(transit_s, self._arrive, target, message)

    def _arrive(self, target: _Subscription, message: SimMessage) -> None:
        process = target.client.process
        if process.alive and not self.is_away and target in self.subscriptions:
            process.spawn(_when_awake(process, target.cb, message))

    def store(self, message: SimMessage) -> bytes:
        """JetStream's answer to a publish: stored, a duplicate, or refused."""
        if self.stream is None:
            return b'{"error":{"code":503,"err_code":10076,"description":"no stream"}}'
        answer = self.stream.store(message)
        for pull in list(self.pulls.values()):
            pull.feed()
        return answer

    def go_away(self, seconds: float) -> None:
        """Nothing is heard of it for a while; what was on its way is lost. The stream is kept."""
        self.is_away = True
        asyncio.get_running_loop().call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        self.is_away = False
        for pull in list(self.pulls.values()):
            pull.take_up()

    def wipe(self) -> None:
        """The stream and its durables are gone, as after a lost disk."""
        self.stream = None


async def _when_awake(process: Process, cb: Callback, message: SimMessage) -> None:
    if message.subject.startswith("cmd."):
        await process.step(f"received:{message.subject.removeprefix('cmd.')}")
    else:
        await process.hold()
    await cb(message)


class EventStream:
    """The stream of events and what each durable has acknowledged."""

    def __init__(self) -> None:
        self.messages: list[SimMessage] = []
        self.consumers: dict[str, list[str]] = {}
        self.acked: dict[str, set[int]] = {}
        self._ids: dict[str, int] = {}

    def store(self, message: SimMessage) -> bytes:
        headers = message.headers or {}
        message_id = headers.get("Nats-Msg-Id", "")
        if message_id in self._ids:
            return b'{"stream":"EVENTS","seq":%d,"duplicate":true}' % self._ids[message_id]
        if int(headers.get("Nats-Expected-Last-Sequence", len(self.messages))) != len(self.messages):
            return b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}'
        self.messages.append(message)
        self._ids[message_id] = len(self.messages)
        return b'{"stream":"EVENTS","seq":%d}' % len(self.messages)


class SimClient:
    """A process's connection: the part of nats.aio.client.Client that the services use."""

    is_connected = True
    is_closed = False
    is_draining = False

    def __init__(self, server: SimNats, process: Process) -> None:
        self.server = server
        self.process = process
        self._inboxes = 0
        process.at_death.append(self._leave)

    def _leave(self) -> None:
        for one in list(self.server.subscriptions):
            if one.client is self:
                del self.server.subscriptions[one]

    def new_inbox(self) -> str:
        """An address of our own."""
        self._inboxes += 1
        return f"_INBOX.{self.process.name}.{self._inboxes}"

    async def flush(self, timeout: float | None = None) -> None:
        """Everything is sent at once."""

    async def subscribe(self, subject: str, queue: str = "", cb: Callback | None = None, **_: Any) -> _Subscription:
        """Listens."""
        assert cb is not None
        subscription = _Subscription(self.server, self, subject, queue, cb)
        self.server.subscriptions[subscription] = None
        return subscription

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends, once or never; to JetStream if it keeps the subject."""
        message = SimMessage(subject, payload, reply, headers)
        if subject.startswith("evt."):
            await self._publish_event(message)
        elif subject.startswith("_REPLY."):
            await self._reply(message)
        else:
            for target in self.server.listeners(subject):
                self.server.send(target, message)

    async def _reply(self, message: SimMessage) -> None:
        """`_REPLY.<owner>.<tag>.<who asked>`: the answer to a request."""
        _, owner, tag, _ = message.subject.split(".", 3)
        place = f"answer:{owner}.{tag}"
        fault = await self.process.step(place, (LOST, DELAYED))
        if fault == LOST:
            return
        for target in self.server.listeners(message.subject):
            self.server.send(target, message, late=fault == DELAYED)

    async def _publish_event(self, message: SimMessage) -> None:
        _, category, name, _ = message.subject.split(".", 3)
        fault = await self.process.step(f"publish:{category}.{name}", (LOST, UNHEARD))
        if fault == LOST or self.server.is_away:
            return
        answer = self.server.store(message)
        if fault is None and message.reply:
            await self.publish(message.reply, answer)

    async def request(self, subject: str, payload: bytes, timeout: float) -> SimMessage:
        """One answer, NoRespondersError if nobody listens, or TimeoutError."""
        await self.process.hold()
        _, owner, tag = subject.split(".", 2)
        fault = self.server.chaos.fault(f"command:{owner}.{tag}", (LOST, DELAYED))
        if self.server.is_away:
            await asyncio.sleep(timeout)
            raise nats.errors.TimeoutError
        found = self.server.listeners(subject)
        if not found:
            raise nats.errors.NoRespondersError
        self._inboxes += 1
        reply = f"_REPLY.{owner}.{tag}.{self.process.name}-{self._inboxes}"
        answer: asyncio.Future[SimMessage] = asyncio.get_running_loop().create_future()

        async def take(message: SimMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = await self.subscribe(reply, cb=take)
        try:
            if fault != LOST:
                self.server.send(found[0], SimMessage(subject, payload, reply), late=fault == DELAYED)
            async with asyncio.timeout(timeout):
                message = await answer
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        finally:
            await inbox.unsubscribe()
        await self.process.hold()
        return message

    def jetstream(self, **_: Any) -> "SimJetStream":
        """The management of streams and durables."""
        return SimJetStream(self)


class SimJetStream:
    """What the relay's Topology asks of JetStream."""

    def __init__(self, client: SimClient) -> None:
        self._client = client
        self._server = client.server

    async def add_stream(self, config: StreamConfig) -> Any:
        """Makes the stream of events, empty, unless it is there. Telemetry is not simulated."""
        if config.name == EVENTS_STREAM and self._server.stream is None:
            self._server.stream = EventStream()

    async def update_stream(self, config: StreamConfig) -> Any:
        """Nothing to change."""

    async def delete_stream(self, name: str) -> bool:
        """Forgets its messages, durables and ids."""
        self._server.stream = None
        return True

    async def stream_info(self, name: str) -> Any:
        """How far it goes."""
        count = len(self._stream().messages)
        return SimpleNamespace(state=SimpleNamespace(messages=count, last_seq=count))

    async def get_msg(self, stream_name: str, seq: int) -> SimMessage:
        """One message."""
        return self._stream().messages[seq - 1]

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> Any:
        """Makes a durable, which begins at the first message."""
        name = config.durable_name or ""
        self._stream().consumers[name] = list(config.filter_subjects or [])
        self._stream().acked[name] = set()
        if name in self._server.pulls:
            self._server.pulls[name].feed()

    async def consumers_info(self, stream: str) -> list[Any]:
        """The durables."""
        return [
            SimpleNamespace(name=name, config=SimpleNamespace(filter_subjects=subjects, filter_subject=None))
            for name, subjects in self._stream().consumers.items()
        ]

    def _stream(self) -> EventStream:
        if self._server.is_away:
            raise nats.errors.TimeoutError
        if self._server.stream is None:
            raise NotFoundError
        return self._server.stream


class SimPull:
    """A durable's standing pull: hands over what the stream has, with the faults of the way."""

    def __init__(self, client: SimClient, durable: Durable, arrived: Callable[[], None]) -> None:
        self._client = client
        self._server = client.server
        self._durable = durable
        self._arrived = arrived
        self._sent = 0
        self._stream: EventStream | None = None
        self._waiting: list[SimMessage] = []
        self._closed = False
        self._server.pulls[durable.name] = self

    def take(self) -> list[SimMessage]:
        """What has arrived."""
        taken, self._waiting = self._waiting, []
        return taken

    async def ask(self) -> None:
        """A request stands always."""
        await self._client.process.hold()
        self.feed()

    async def restart(self) -> None:
        """What was under way comes again."""
        self.take_up()

    def take_up(self) -> None:
        """Asks for everything that is not acknowledged."""
        self._sent = 0
        self.feed()

    async def close(self) -> None:
        """Nothing more arrives."""
        self._closed = True
        if self._server.pulls.get(self._durable.name) is self:
            del self._server.pulls[self._durable.name]

    def feed(self) -> None:
        """Sends every message of the durable that was not sent to this pull yet and is not acknowledged."""
        stream = self._server.stream
        if stream is not self._stream:
            self._stream, self._sent = stream, 0
        if stream is None or self._server.is_away or self._closed or self._durable.name not in stream.consumers:
            return
        while self._sent < len(stream.messages):
            self._sent += 1
            message = stream.messages[self._sent - 1]
            category, name = message.subject.split(".", 3)[1:3]
            if category in self._durable.categories and self._sent not in stream.acked[self._durable.name]:
                self._send(stream, self._sent, message, f"deliver:{self._durable.name}:{category}.{name}")

    def _send(self, stream: EventStream, sequence: int, message: SimMessage, place: str) -> None:
        chaos = self._server.chaos
        fault = chaos.fault(place, (LOST, REPEATED, DELAYED))
        loop = asyncio.get_running_loop()
        delivery = SimMessage(
            message.subject, message.data, "", message.headers, lambda: stream.acked[self._durable.name].add(sequence)
        )
        delay_s = chaos.between(*(_LATE_S if fault == DELAYED else _TRANSIT_S))
        if fault == LOST:
            delay_s = ACK_WAIT_S
        loop.call_later(delay_s, self._arrive, stream, delivery)
        if fault == REPEATED:
            loop.call_later(chaos.between(*_LATE_S), self._arrive, stream, delivery)

    def _arrive(self, stream: EventStream, delivery: SimMessage) -> None:
        is_open = not self._closed and not self._server.is_away and self._client.process.alive
        if is_open and stream is self._stream:
            self._waiting.append(delivery)
            self._arrived()
