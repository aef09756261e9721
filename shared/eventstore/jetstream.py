"""What the relay uses of nats-py's JetStream, with the types that nats-py leaves open."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

import nats.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, ConsumerInfo, StreamConfig, StreamInfo

API_TIMEOUT_S = 5.0

T = TypeVar("T")


class StoredMessage(Protocol):
    """A message as a stream keeps it."""

    headers: dict[str, str] | None


class JetStream(Protocol):
    """nats.js.JetStreamContext, as far as the relay needs it."""

    async def add_stream(self, config: StreamConfig) -> StreamInfo:
        """Makes a stream, or does nothing if it is there and the same; BadRequestError if it differs."""
        ...

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Changes a stream's configuration."""
        ...

    async def delete_stream(self, name: str) -> bool:
        """Removes a stream, its messages and its consumers."""
        ...

    async def stream_info(self, name: str) -> StreamInfo:
        """A stream's state, or NotFoundError."""
        ...

    async def get_msg(self, stream_name: str, seq: int) -> StoredMessage:
        """One message of a stream, or NotFoundError."""
        ...

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Makes a consumer, or changes it."""
        ...

    async def consumers_info(self, stream: str) -> list[ConsumerInfo]:
        """The consumers of a stream (at most 256), or NotFoundError."""
        ...


def jetstream(client: Client) -> JetStream:
    """The JetStream of a connection."""
    make = cast("Callable[..., JetStream]", client.jetstream)  # pyright: ignore[reportUnknownMemberType] - untyped
    return make(timeout=API_TIMEOUT_S)


async def within(request: Awaitable[T], timeout_s: float = API_TIMEOUT_S) -> T:
    """The answer to a request to NATS, or nats.errors.TimeoutError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await request
    except TimeoutError as error:
        raise nats.errors.TimeoutError from error
