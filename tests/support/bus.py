"""A NATS with every user and permission of subjects.py, a relay on it, and the environment of a service between them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.embedded.nats import EmbeddedNats, NatsUser
from shared.contracts.subjects import all_permissions
from shared.messaging.connection import Bus, BusSettings
from shared.settings import Secret


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


@asynccontextmanager
async def connected_bus(server: EmbeddedNats, user: str) -> AsyncIterator[Bus]:
    """A connection under one user's permissions, closed at the end."""
    bus = await Bus.connect(bus_settings(server, user), service=user, timeout_s=10)
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
