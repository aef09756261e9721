"""The log machine on a real Postgres and a real NATS: the same rules, the same invariants."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
import structlog
from hypothesis.stateful import run_state_machine_as_test
from nats.js.errors import NotFoundError

from deploy.embedded.nats import EmbeddedNats
from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from shared.contracts.catalogue import WRITERS
from shared.contracts.subjects import EVENTS_STREAM
from shared.eventstore.acks import AckInbox
from shared.eventstore.jetstream import jetstream
from shared.eventstore.migrate import migrate
from shared.eventstore.postgres import PostgresEventStore
from shared.eventstore.queries import QUERIES
from shared.eventstore.topology import StreamEnd, Topology
from tests.support.bus import bus_users, connected_bus, stream_api
from tests.support.depth import depth, examples
from tests.support.log import PASSWORDS
from tests.support.log_machine import FOLDS, SERVICE, Backend, Delivered, LogMachine, Publishing

MAKE_TABLE = f"""CREATE TABLE {SERVICE}.{FOLDS} (
    stream text PRIMARY KEY, events int NOT NULL, positions numeric NOT NULL, squares numeric NOT NULL
); ALTER TABLE {SERVICE}.{FOLDS} OWNER TO {SERVICE}"""


class ServerBackend:
    """A fresh database of the test's Postgres, and its NATS with empty streams."""

    def __init__(self, postgres: EmbeddedPostgres, nats: EmbeddedNats, template: str) -> None:
        self._postgres = postgres
        self._nats = nats
        self._template = template
        self._name = f"machine_{uuid4().hex}"
        self._stack = AsyncExitStack()
        self._stores: dict[str, PostgresEventStore] = {}
        self._seen: list[Delivered] = []
        self.pool: Any = None
        self.relay_connection: Any = None

    @property
    def store(self) -> PostgresEventStore:
        """The log as the consumer's service reads it."""
        return self._stores[SERVICE]

    def _dsn(self, role: str) -> str:
        return self._postgres.dsn(role, PASSWORDS[role], self._name)

    async def open(self) -> "ServerBackend":
        """Makes the database and the streams."""
        admin = await asyncpg.connect(self._postgres.superuser_dsn)
        self._stack.push_async_callback(admin.close)
        await admin.execute(f"CREATE DATABASE {self._name} TEMPLATE {self._template} STRATEGY file_copy")
        self._stack.push_async_callback(admin.execute, f"DROP DATABASE {self._name} WITH (FORCE)")
        await migrate(self._postgres.superuser_dsn, self._name, PASSWORDS)
        owner = await asyncpg.connect(self._postgres.dsn(SUPERUSER, self._postgres.superuser_password, self._name))
        await owner.execute(MAKE_TABLE)
        await owner.close()
        for role in dict.fromkeys(["billing", "scheduler", "provider_bridge"]):
            opened = PostgresEventStore.open(self._dsn(role), connections=4)
            self._stores[role] = await self._stack.enter_async_context(opened)
        self.pool = await self._stack.enter_async_context(
            asyncpg.create_pool(self._dsn(SERVICE), min_size=1, max_size=3)
        )
        self.relay_connection = await asyncpg.connect(self._dsn("relay"))
        self._stack.push_async_callback(self.relay_connection.close)
        self._bus = await self._stack.enter_async_context(connected_bus(self._nats, "relay"))
        self._inbox = await self._stack.enter_async_context(AckInbox(self._bus.client))
        self._topology = Topology(jetstream(self._bus.client), await self.store.store_id())
        await self.wipe_stream()
        return self

    def writer(self, category: str) -> PostgresEventStore:
        """The log under the role that owns the category."""
        return self._stores[WRITERS[category]]

    async def connect(self) -> asyncpg.Connection:
        """A session of the consumer's own."""
        return await asyncpg.connect(self._dsn(SERVICE))

    async def open_stream(self) -> tuple[Publishing, StreamEnd]:
        """The stream from its end."""
        await self._topology.ensure()
        return self._inbox, await self._topology.end()

    async def wipe_stream(self) -> None:
        """Deletes the stream and makes it anew."""
        await self._topology.remake_events()
        self._seen = []

    async def remember(self, position: int) -> None:
        """The relay's checkpoint."""
        await self.relay_connection.execute(QUERIES.remember_published, position)

    async def stream(self) -> list[Delivered]:
        """Every message; those that were read before are not read again."""
        api = cast("Any", stream_api(self._bus))  # nats-py types its messages' headers by halves
        try:
            last = (await api.stream_info(EVENTS_STREAM)).state.last_seq
        except NotFoundError:
            return []
        for number in range(len(self._seen) + 1, last + 1):
            message = await api.get_msg(EVENTS_STREAM, seq=number)
            self._seen.append(Delivered(message.subject, dict(message.headers), message.data))
        return list(self._seen)

    async def close(self) -> None:
        """Ends every connection and drops the database."""
        await self._stack.aclose()


@pytest.fixture(scope="module")
def machine_bus(server_dir: Path) -> Iterator[EmbeddedNats]:
    """A NATS whose streams nobody else uses."""
    server = EmbeddedNats(server_dir / "machine_bus", bus_users()).start()
    yield server
    server.stop()


@pytest.mark.timeout(depth(300))
def test_store_relay_and_projection_on_real_servers(
    postgres_server: EmbeddedPostgres, machine_bus: EmbeddedNats, log_template: str
) -> None:
    class ServerMachine(LogMachine):
        async def open_backend(self) -> Backend:
            return await ServerBackend(postgres_server, machine_bus, log_template).open()

    with structlog.testing.capture_logs():
        run_state_machine_as_test(ServerMachine, settings=examples(8, stateful_step_count=18))
