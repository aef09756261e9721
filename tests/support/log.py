"""A migrated log of a test's own, and stores on it under each service's role."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg
import pytest

from deploy.embedded.postgres import SUPERUSER, EmbeddedPostgres
from shared.clock import utc_now
from shared.contracts.account import AccountOpened
from shared.contracts.envelope import EventMetadata
from shared.contracts.job import Event, JobLateFact
from shared.eventstore.api import Append
from shared.eventstore.migrate import LOGIN_ROLES, migrate
from shared.eventstore.postgres import PostgresEventStore

PASSWORDS = {role: f"test-{role}" for role in LOGIN_ROLES}
_TEMPLATE = "tw_log_template"

StoreFor = Callable[[str], Awaitable[PostgresEventStore]]


@dataclass(frozen=True, slots=True)
class LogDatabase:
    """A database as `migrate` leaves it; `dsn("scheduler")` logs in as a role, `superuser_dsn` as the superuser."""

    name: str
    server: EmbeddedPostgres

    def dsn(self, role: str) -> str:
        """How one of the log's roles connects."""
        return self.server.dsn(role, PASSWORDS[role], self.name)

    @property
    def superuser_dsn(self) -> str:
        """How the superuser connects."""
        return self.server.dsn(SUPERUSER, self.server.superuser_password, self.name)


@pytest.fixture(scope="session")
async def log_template(postgres_server: EmbeddedPostgres) -> str:
    """A migrated database without an identity: copying it is faster than migrating anew."""
    await migrate(postgres_server.superuser_dsn, _TEMPLATE, PASSWORDS)
    connection = await asyncpg.connect(postgres_server.superuser_dsn, database=_TEMPLATE)
    await connection.execute("delete from log.store_meta")
    await connection.close()
    return _TEMPLATE


@pytest.fixture
async def log_database(postgres_server: EmbeddedPostgres, log_template: str) -> AsyncIterator[LogDatabase]:
    """A fresh migrated database, dropped at the end with whoever is still connected."""
    name = f"log_{uuid4().hex}"
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {log_template} STRATEGY file_copy")
    await migrate(postgres_server.superuser_dsn, name, PASSWORDS)  # grants and identity are not copied
    yield LogDatabase(name, postgres_server)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def store_for(log_database: LogDatabase) -> AsyncIterator[StoreFor]:
    """`await store_for("scheduler")`: a store under that service's role; the same one when asked again."""
    async with AsyncExitStack() as stack:
        stores: dict[str, PostgresEventStore] = {}

        async def open_store(role: str) -> PostgresEventStore:
            if role not in stores:
                opened = PostgresEventStore.open(log_database.dsn(role))
                stores[role] = await stack.enter_async_context(opened)
            return stores[role]

        yield open_store


def a_job_stream() -> str:
    """The name of a job stream that nobody else uses."""
    return f"job-{uuid4()}"


def a_fact(text: str = "something happened") -> JobLateFact:
    """Any event of a job stream."""
    return JobLateFact(fact=text, attempt_id=None, at=utc_now())


def an_account_event(owner: str = "alice") -> AccountOpened:
    """Any event of an account stream."""
    return AccountOpened(owner=owner, month="2026-11", floor_micro_usd=None, opened_at=utc_now())


def an_append(stream: str, *events: Event, expected_version: int = 0, correlation_id: UUID | None = None) -> Append:
    """An append that says only what matters; one event if none is given."""
    return Append(
        stream=stream,
        expected_version=expected_version,
        events=events or (a_fact(),),
        meta=EventMetadata(actor="user:test"),
        correlation_id=correlation_id or uuid4(),
    )
