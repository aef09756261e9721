"""Acknowledgements of pipelined publishes. nats-py's own `publish_async` never answers when the server refuses."""

import asyncio
from typing import Self

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from shared.eventstore.jetstream import within


class PubError(msgspec.Struct, frozen=True):
    """Why JetStream refused a message."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's answer to a message: where it is in the stream, or why not."""

    seq: int = 0
    duplicate: bool = False
    error: PubError | None = None


class RefusedError(nats.errors.Error):
    """JetStream did not take a message; those behind it that state what they follow were refused too."""


_decoder = msgspec.json.Decoder(PubAck)


class AckInbox:
    """Sends messages without waiting, and keeps their answers apart by a number in the reply subject."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[PubAck]] = {}
        self._subscription: Subscription | None = None
        self._sent = 0

    async def __aenter__(self) -> Self:
        subject = f"{self._prefix}.*"
        self._subscription = await self._client.subscribe(subject, cb=self._receive)  # pyright: ignore[reportUnknownMemberType] - nats-py
        return self

    async def __aexit__(self, *_: object) -> None:
        for waiting in self._waiting.values():
            waiting.cancel()
        if self._subscription is not None and self._client.is_connected:
            await within(self._subscription.unsubscribe())

    async def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[PubAck]:
        """Hands a message to the connection; the future is its answer, which may never come."""
        self._sent += 1
        token = str(self._sent)
        answer: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        answer.add_done_callback(lambda _: self._waiting.pop(token, None))
        await within(self._client.publish(subject, payload, reply=f"{self._prefix}.{token}", headers=headers))
        return answer

    async def _receive(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting.done():
            return
        if message.headers and "Status" in message.headers:  # nobody listens: there is no stream
            waiting.set_result(PubAck(error=PubError(description=f"status {message.headers['Status']}")))
        else:
            waiting.set_result(_decoder.decode(message.data))
