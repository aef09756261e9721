"""A NATS with every user and permission of subjects.py, a relay on it, and what a service needs to run on both."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from nats.js import JetStreamContext

from deploy.embedded.nats import EmbeddedNats, NatsUser
from shared.contracts.subjects import all_permissions
from shared.eventstore.relay import Relay
from shared.messaging.connection import Bus, BusSettings
from shared.settings import Secret
from tests.support.log import LogDatabase

ServiceSettings = Callable[..., Mapping[str, str]]


def bus_password(user: str) -> str:
    """The password of a NATS user in tests."""
    return f"test-{user}"


def bus_users() -> list[NatsUser]:
    """Every user that subjects.py names, with its permissions and nothing else."""
    return [
        NatsUser(
            permissions.user,
            bus_password(permissions.user),
            permissions.publish,
            permissions.subscribe,
            allow_responses=permissions.allow_responses,
        )
        for permissions in all_permissions()
    ]


def bus_settings(server: EmbeddedNats, user: str) -> BusSettings:
    """How one user connects."""
    return BusSettings(url=server.url, user=user, password=Secret(bus_password(user)))


def stream_api(bus: Bus) -> JetStreamContext:
    """JetStream as the bus's user may use it."""
    return bus.client.jetstream()  # pyright: ignore[reportUnknownMemberType] - nats-py leaves its options untyped


@asynccontextmanager
async def connected_bus(server: EmbeddedNats, user: str) -> AsyncGenerator[Bus]:
    """A connection under one user's permissions, closed at the end."""
    bus = await Bus.connect(bus_settings(server, user), service=user, timeout_s=60)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
def bus_server(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A NATS of one test's own, which may stop and restart it."""
    server = EmbeddedNats(tmp_path / "bus", bus_users()).start()
    yield server
    server.stop()


@asynccontextmanager
async def relaying(database: LogDatabase, server: EmbeddedNats) -> AsyncGenerator[Relay]:
    """A relay between a log and a bus, in this process."""
    stop = asyncio.Event()
    async with (
        asyncpg.create_pool(database.dsn("relay"), min_size=1, max_size=3) as pool,
        connected_bus(server, "relay") as bus,
    ):
        relay = Relay(pool, bus)
        running = asyncio.create_task(relay.run(stop))
        try:
            yield relay
        finally:
            stop.set()
            await running


@pytest.fixture
async def bus_relay(log_database: LogDatabase, bus_server: EmbeddedNats) -> AsyncIterator[Relay]:
    """The relay between this test's log and this test's bus."""
    async with relaying(log_database, bus_server) as relay:
        yield relay


@pytest.fixture
def service_settings(
    log_database: LogDatabase,
    bus_server: EmbeddedNats,
    bus_relay: Relay,  # noqa: ARG001 - only needs to run
) -> ServiceSettings:
    """`service_settings("billing", price=3)`: the environment of a service on this test's log and bus, with a relay."""

    def environment(service: str, **extra: object) -> Mapping[str, str]:
        return {
            "DATABASE_URL": log_database.dsn(service),
            "NATS_URL": bus_server.url,
            "NATS_USER": service,
            "NATS_PASSWORD": bus_password(service),
            "LOG_LEVEL": "WARNING",
            **{name.upper(): str(value) for name, value in extra.items()},
        }

    return environment
